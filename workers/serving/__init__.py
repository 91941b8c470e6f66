"""Answers with the snapshot that is live: follows an alias, swaps weights, speaks OpenAI's API.

`python -m workers.serving` is the server behind `corrigenda serve`; `python -m workers.serving.asking` the one that
`corrigenda ask` starts when it needs one.
"""
