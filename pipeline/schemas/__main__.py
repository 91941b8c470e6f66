"""`python -m pipeline.schemas write` brings the kept schemas up to date; `check` ends with 1 if one is not."""

from __future__ import annotations

import sys

from pipeline import schemas


def main(arguments: list[str]) -> int:
    """Write or check; returns the exit status."""
    match arguments:
        case ["write"]:
            sys.stdout.write("".join(f"wrote {name}\n" for name in schemas.write()))
            return 0
        case ["check"]:
            names = schemas.stale()
            sys.stderr.write("".join(f"{name} is not what the models say\n" for name in names))
            return 1 if names else 0
        case _:
            sys.stderr.write("expected: python -m pipeline.schemas write|check\n")
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
