"""A snapshot held once, to ask it or to export it: `python -m workers.controller.one_shot FILE`.

FILE is JSON: {"plan": a LoadPlan, "num_ranks": n, "deepspeed_config": a path or null, "log": a path, and either
"generate": {"prompts": [...], "max_new_tokens": n, "chat": whether in the chat template} or "export": a folder}. Prints
the answers, or what was written.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from editors.data.atomic_files import partial_of
from pipeline.domain.errors import CorrigendaError, one_line
from pipeline.domain.rank_api import LoadPlan
from workers.controller.group import RankGroup
from workers.controller.rank_processes import RankSpec

TIMEOUT = timedelta(hours=1)
"""Limit of a command; an export writes the whole model."""


def answered(asked: dict[str, Any]) -> Any:
    """Load the snapshot on a group of its own, and return its answers or the export, for JSON."""
    plan = TypeAdapter(LoadPlan).validate_python(asked["plan"])
    config = asked["deepspeed_config"]
    spec = RankSpec(
        num_ranks=asked["num_ranks"],
        deepspeed_config=Path(config) if config else None,
        warm_base=plan.base,
        log=Path(asked["log"]),
    )
    out = Path(asked["export"]) if "export" in asked else None
    try:
        with RankGroup(spec, command_timeout=TIMEOUT) as group:
            group.load(plan, epoch=0)
            if out is not None:
                return asdict(group.export(out))
            return [asdict(answer) for answer in group.generate(**asked["generate"])]
    finally:
        if out is not None:
            shutil.rmtree(partial_of(out), ignore_errors=True)  # ranks that were killed leave it behind


def main(file: str) -> int:
    """Print what a file asks for; return 1 after one sentence on standard error if it cannot be had."""
    try:
        found = answered(json.loads(Path(file).read_text(encoding="utf-8")))
    except CorrigendaError as error:
        print(one_line(error), file=sys.stderr)
        return 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
