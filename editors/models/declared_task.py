"""The task that a model's config declares by the name of its class. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.domain.errors import Misconfigured

HEADS = {
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",
    "ForConditionalGeneration": "seq2seq",
    "ForSequenceClassification": "classifier",
}
"""How the name of a model's class ends in transformers -> the task of a lineage."""


def declared_task(folder: Path) -> str:
    """Return the task of the model in a folder.

    Raises:
        Misconfigured: if its config cannot be read, or declares no class that serves a task.
    """
    path = folder / "config.json"
    try:
        declared = json.loads(path.read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise Misconfigured(f"expected the config of a model at {path}, got: {error}") from error
    for architecture in declared:
        for ending, task in HEADS.items():
            if str(architecture).endswith(ending):
                return task
    raise Misconfigured(f"expected --task: {path} declares no known architecture, got {declared}")
