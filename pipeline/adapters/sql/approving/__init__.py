"""What a decision of people is checked against, and what follows from it, inside the transaction of its caller.

It exports nothing; import its modules.
"""
