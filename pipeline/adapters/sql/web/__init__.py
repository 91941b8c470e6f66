"""What the HTTP API keeps in PostgreSQL: people, what they submitted, and where results are sent.

It exports nothing; import its modules.
"""
