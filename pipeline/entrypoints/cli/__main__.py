"""`python -m pipeline.entrypoints.cli` is the command `corrigenda`."""

from pipeline.entrypoints.cli.app import main

main()
