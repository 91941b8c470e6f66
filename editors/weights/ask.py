"""Loads a snapshot into a plain model and asks it: `python -m editors.weights.ask FILE`.

FILE is JSON: {"plan": a LoadPlan, "prompts": [...], "max_new_tokens": n, "chat": whether in the chat
template}. Prints [{"prompt", "text"}, ...].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import TypeAdapter

from editors.weights.loading import load_snapshot
from pipeline.domain.errors import CorrigendaError
from pipeline.domain.rank_api import LoadPlan


def main(file: str) -> int:
    """Answer the prompts of a file."""
    asked = json.loads(Path(file).read_text(encoding="utf-8"))
    prompts: list[str] = asked["prompts"]
    try:
        plan = TypeAdapter(LoadPlan).validate_python(asked["plan"])
        model = load_snapshot(
            Path(plan.base.ref),
            base=plan.base,
            inner_param_names=plan.editor.inner_params,
            accumulator=plan.accumulator,
            deltas=plan.deltas,
        )
        answers = model.generate(prompts, chat=asked.get("chat", False), max_new_tokens=asked["max_new_tokens"])
    except CorrigendaError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(json.dumps([{"prompt": p, "text": a} for p, a in zip(prompts, answers, strict=True)]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
