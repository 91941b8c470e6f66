"""Every figure that needs an accelerator, in one script of ten minutes: trains the editor, then measures it.

    python -m tests.benchmarks.gpu_figures --data FOLDER --out "$OUT"

Each stage is a process of its own, with a time limit: what fails or is late costs the others nothing. `figures.json` in
`--out` is written after each stage, so that a machine that is taken away has left what was measured. `--tiny` and
`--device cpu` try the script out where there is no accelerator.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.train_editor import OTHER_TEXT, TEXT, TRAIN, embedded_base, training_words

SHARE_OF_TRAINING = 0.45
"""Part of the time that is spent on training."""
SAID = 2000
"""Characters of what a stage said last that are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One process."""

    name: str
    """What it is called in the figures."""
    command: tuple[str, ...]
    """What is run, after the interpreter."""
    seconds: float
    """How long it may take."""
    result: Path | None = None
    """JSON file that it leaves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a stage came to."""

    status: int | None
    """Its exit status; None for one that was stopped because it was late."""
    seconds: float
    """How long it took."""
    said: str
    """The end of what it wrote."""
    figures: Any = None
    """The JSON that it left."""


def rows_of(given: argparse.Namespace, editor: Path, seconds: float) -> list[Stage]:
    """Return the stages that measure the trained editor beside the untrained one; they share the device."""
    data, few = given.data, 8 if given.tiny else None
    tables = {
        "real_dev": ("real_dev.jsonl", 70, 35),
        "zsre": ("zsre_val.jsonl", 300, 32),
        "stream": ("counterfact_pararel_stream.jsonl", 1024, 32),
    }
    if not given.tiny:
        tables["long"] = ("counterfact_pararel_stream.jsonl", 3000, 100)
    texts = ["--prior-text", str(data / TEXT), "--prior-text", str(data / TRAIN[0]), "--text", str(data / OTHER_TEXT)]
    stages = []
    for name, (file, num_edits, batch) in tables.items():
        for how, words in {"trained": ["--editor", str(editor)], "untrained": []}.items():
            if how == "untrained" and name == "long":
                continue
            result = given.out / f"{name}-{how}.json"
            command = ["-m", "editors.evaluation", "--data", str(data / file), "--edits", str(few or num_edits)]
            command += ["--batch", str(few or batch), "--model", str(given.model), "--device", given.device]
            command += [*texts, *words, "--unseen-questions", "--json", str(result)]
            command += ["--checkpoint-every", "500" if name == "long" else "0"]
            stages.append(Stage(name=f"{name}-{how}", command=tuple(command), seconds=seconds, result=result))
    return stages


def large_stages(seconds: float) -> list[Stage]:
    """Return the tests of large bases, which need the whole device."""
    tests = {"seven_billion": ("test_sharded_base.py", "seven"), "eleven_billion": ("test_training_at_scale.py", "")}
    alone = ["-c", "/dev/null", "--rootdir", ".", "--noconftest", "-p", "no:cacheprovider"]
    return [
        Stage(
            name=name,
            command=(
                *("-m", "pytest", *alone, "--import-mode=importlib", "-s", "-q", f"tests/gpu/{file}"),
                *(("-k", chosen) if chosen else ()),
            ),
            seconds=seconds,
        )
        for name, (file, chosen) in tests.items()
    ]


def run_together(stages: Sequence[Stage]) -> dict[str, Outcome]:
    """Run some stages side by side; each that is late is killed."""
    began = time.monotonic()
    running = {
        stage.name: subprocess.Popen(
            [sys.executable, *stage.command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for stage in stages
    }
    return {stage.name: _outcome(stage, running[stage.name], began) for stage in stages}


def _outcome(stage: Stage, process: subprocess.Popen[str], began: float) -> Outcome:
    try:
        said, _ = process.communicate(timeout=max(stage.seconds - (time.monotonic() - began), 0.1))
        status: int | None = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        (said, _), status = process.communicate(), None
    figures = json.loads(stage.result.read_text()) if stage.result is not None and stage.result.is_file() else None
    return Outcome(status=status, seconds=time.monotonic() - began, said=said[-SAID:], figures=figures)


def training_speed(run: Path) -> dict[str, float]:
    """Return what the steps of a training took, from its log, without the first ones."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "seconds" in line]
    steps = steps[min(len(steps) // 2, 20) :]
    seconds = sum(line["seconds"] for line in steps)
    return {"steps": len(steps), "edits_per_second": sum(line["edits"] for line in steps) / max(seconds, 1e-9)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every stage; return 1 if one failed or was late."""
    given = _parser().parse_args(arguments)
    given.model = given.model or embedded_base()
    given.out.mkdir(parents=True, exist_ok=True)
    total, run = 60 * given.minutes, given.out / "run"
    words = training_words(given.data, given.model, run, device=given.device, minutes=SHARE_OF_TRAINING * given.minutes)
    training = Stage(
        name="training", command=("-m", "editors.training", *words, *given.more), seconds=0.65 * total + 30
    )
    found: dict[str, Any] = {}
    plan = [[training], rows_of(given, run / "best", 0.3 * total + 60)]
    plan += [[stage] for stage in (() if given.tiny else large_stages(0.15 * total + 60))]
    for stages in plan:
        outcomes = run_together(stages)
        found |= {name: asdict(outcome) for name, outcome in outcomes.items()}
        if "training" in outcomes and (run / "log.jsonl").is_file():
            found["training"]["figures"] = training_speed(run)
        _write(given.out / "figures.json", found)
        print(json.dumps({name: [one.status, round(one.seconds, 1)] for name, one in outcomes.items()}), flush=True)
    return int(any(outcome["status"] != 0 for outcome in found.values()))


def _write(path: Path, figures: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu_figures", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data, with the prepared examples")
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures and the editor")
    parser.add_argument("--model", type=Path, help="folder of the base; the embedded one if left out")
    parser.add_argument("--device", default="cuda", help="where to run; cuda if left out")
    parser.add_argument("--minutes", type=float, default=9.5, help="of all stages together")
    parser.add_argument("--tiny", action="store_true", help="a few edits of each table, and no large base")
    parser.add_argument("more", nargs="*", help="behind --: further options of `corrigenda train`")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
