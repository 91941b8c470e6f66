"""PostgreSQL, the only source of truth: tables, and one store for each subject.

It exports the stores, named `Sql…Store`, and `engine.connect`, whose engine each of them takes.
"""
