"""What one person waits for: corrections sent one after the other until each is a candidate in MLflow, then questions.

    python -m tests.benchmarks.one_by_one --lineage facts --corrections infra/local/facts/corrections.jsonl --times 20

asks a stack that runs (`corrigenda up`, and a lineage without edits of these facts), by the commands that people type.
Of a correction there are two figures: of the whole command, and from the message in Kafka on. The first correction and
the first question are told apart: they load the base.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles

ASKED = (("a stem", ["The capital of Peru is"]), ("a chat", ["--chat", "What is the capital of Peru?"]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the seconds of corrections and of questions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lineage", required=True, help="where corrections go")
    parser.add_argument("--corrections", type=Path, required=True, help="a correction a line")
    parser.add_argument("--times", type=int, default=20, help="how many corrections, and how many of each question")
    options = parser.parse_args(arguments)
    lines = options.corrections.read_text(encoding="utf-8").splitlines()[: options.times]
    with tempfile.TemporaryDirectory() as folder:
        one = Path(folder) / "correction.jsonl"
        corrected = []
        for line in lines:
            one.write_text(line + "\n", encoding="utf-8")
            corrected.append(seconds(["submit", "-l", options.lineage, "--wait", str(one)]))
    told = {
        "a correction, until it is a candidate or refused": [took for took, _ in corrected],
        "the same from when it was produced on": [took - sent for took, sent in corrected],
    }
    for name, words in ASKED:
        asked = [seconds(["ask", "-l", options.lineage, *words]) for _ in range(options.times)]
        told[f"a question: {name}"] = [took for took, _ in asked]
    for name, found in told.items():
        sys.stdout.write(f"{name}: {described(found)}\n")
    return 0


def seconds(words: Sequence[str]) -> tuple[float, float]:
    """Run a command of `corrigenda`; its own words go to standard error.

    Returns:
        How long it took, and how long until it printed its first line: that a correction is sent.
    """
    began, first = time.perf_counter(), 0.0
    with subprocess.Popen(["corrigenda", *words], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            first = first or time.perf_counter() - began
            sys.stderr.write(line)
    took = time.perf_counter() - began
    sys.stderr.write(f"status {running.returncode}, {first:.1f} s to its first line, {took:.1f} s\n")
    return took, first


def described(found: Sequence[float]) -> str:
    """Return the first figure, and median, 95th percentile and longest of the others, in seconds."""
    first, *others = found
    if len(others) < 2:
        return f"{first:.1f} s"
    p95 = quantiles(others, n=20, method="inclusive")[-1]
    return (
        f"first {first:.1f} s; then median {median(others):.1f} s, 95 % {p95:.1f} s, "
        f"longest {max(others):.1f} s of {len(others)}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
