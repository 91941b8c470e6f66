"""How long it takes until everything goes on after a kill: `python -m tests.benchmarks.recovery [--times 1]`.

The embedded stack runs as `corrigenda up` starts it, ten corrections come in a second, and each service and process is
killed with SIGKILL. Printed are the seconds from the kill until work that began after it has come through every part:
topic, database, doorbell, topic of results, and a version in MLflow; without a kill as the first line.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.support.living_stack import living_stack

VICTIMS = ("redis", "postgres", "mlflow", "kafka", "intake", "control-worker")


def main() -> None:
    """Kill each and print a row of the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=1, help="how often each is killed")
    times = parser.parse_args().times
    with (
        tempfile.TemporaryDirectory(prefix="corrigenda-recovery-") as name,
        living_stack(Path(name) / "home") as living,
    ):
        living.everything_goes_on()
        print(f"| nothing | {living.everything_goes_on():.1f} |", flush=True)
        for victim in VICTIMS * times:
            living.kill(victim)
            began = time.monotonic()
            living.everything_goes_on()
            print(f"| {victim} | {time.monotonic() - began:.1f} |", flush=True)


if __name__ == "__main__":
    main()
