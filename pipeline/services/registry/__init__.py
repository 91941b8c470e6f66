"""What is kept in MLflow, checked there, and put right there.

It exports nothing; import its modules.
"""
