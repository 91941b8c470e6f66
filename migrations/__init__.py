"""The revisions of the database schema, and the `env.py` that Alembic runs around them.

It exports nothing: `pipeline.adapters.schema` finds it by name and runs it.
"""
