"""A trained editor for a tiny Llama that was trained for no step: what matters is that it is one, and asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from editors.mend.checkpoint import CardStage, EditorCard, TrainedEditor
from editors.mend.transform import MendTransform, shapes_of
from editors.models.digest import base_digest
from editors.models.inner_params import inner_params
from editors.weights.loading import load_base

SUBJECT, ANSWER = "model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.weight"


def tiny_editor(model: Path, **changes: Any) -> TrainedEditor:
    """A transform that was trained for no step, with a card that says how it is to be used."""
    params = inner_params(load_base(model).module, (SUBJECT,))
    transform = MendTransform(shapes_of(params), rank=2, statistics="token", stop_probability=0.7)
    fields: dict[str, Any] = {
        "base_digest": base_digest(model),
        "task": "causal",
        "solver": "recursive",
        "stages": (
            CardStage(inner_params=(SUBJECT,), key_tokens="subject"),
            CardStage(inner_params=(ANSWER,), key_tokens="answer"),
        ),
        "shapes": tuple((name, *shape) for name, shape in transform.shapes.items()),
        "rank": 2,
        "statistics": "token",
        "stop_probability": 0.7,
        "settings": {"step": 0.3, "trained_passes": 2, "of a later version": 1},
        "training": {},
        "data": (),
        "metrics": {},
        "command": "test",
        "num_steps": 0,
        "versions": {},
        "licence": "",
    }
    return TrainedEditor(card=EditorCard(**(fields | changes)), transform=transform)
