"""The process of the HTTP API and the pages: `python -m pipeline.entrypoints.web`.

It exports nothing; import its modules.
"""
