"""What crosses the topics: messages of producers, chats in them, and what is announced.

It exports nothing; import its modules.
"""
