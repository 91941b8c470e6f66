"""The command `corrigenda`: one module for each group of commands, put together in `app`.

`app.main` is the entry point; each other module exports `add_commands`.
"""
