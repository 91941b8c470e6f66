"""The command `corrigenda`: one module for each group of commands, put together in `app`."""

from pipeline.entrypoints.cli.app import main

__all__ = ["main"]
