"""The database as all stores use it: its tables, connections and locks, and rows as records.

It exports nothing; import its modules.
"""
