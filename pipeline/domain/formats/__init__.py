"""How values are written and read: canonical JSON, lines of JSON, sizes as people say them.

It exports nothing; import its modules.
"""
