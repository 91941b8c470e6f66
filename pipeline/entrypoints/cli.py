"""The command `corrigenda`: puts the groups of commands together. Does nothing itself."""

from __future__ import annotations

import logging
import os
import sys

import structlog
import typer

from pipeline.entrypoints import cli_audit, cli_edits, cli_lineage, cli_review, cli_stack

app = typer.Typer(
    name="corrigenda",
    help="Keeps a deployed language model's facts right: corrections in, approved and audited snapshots out.",
    epilog="Exit status: 0 done, 1 the answer is no, 2 wrong input, 3 misconfigured, 4 a service does not answer, "
    "5 stored data does not match its digest.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

for group in (cli_stack, cli_edits, cli_review, cli_lineage, cli_audit):
    group.add_commands(app)


def main() -> None:
    """Entry point of the console script."""
    logging.basicConfig(level=os.environ.get("CORRIGENDA_LOG", "WARNING"), stream=sys.stderr, format="%(message)s")
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    app()


if __name__ == "__main__":
    main()
