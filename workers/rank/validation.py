"""Checks of what a rank is to hold, to try or to answer; each refuses in one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields

from editors.measure.scorer import questions_of
from editors.models.families import EditableModel
from editors.models.inner_params import InnerParam
from editors.models.tokens import require_plain
from editors.weights.deltas import WeightDelta
from pipeline.domain.edits import Edit
from pipeline.domain.errors import EditorFailed, IntegrityBroken, InvalidInput, WrongBase
from pipeline.domain.measurements import EditScore, Measurements, ModelScore
from pipeline.domain.rank_api import BaseSpec


def require_fit(params: Sequence[InnerParam], delta: WeightDelta, path: str) -> None:
    """Refuse a delta of other weights.

    Raises:
        IntegrityBroken: naming the first inner parameter that differs.
    """
    expected = {param.name: (param.in_features, param.out_features) for param in params}
    found = {name: (len(left), right.shape[1]) for name, (left, right) in delta.factors.items()}
    if found != expected:
        name = min(key for key in {*expected, *found} if expected.get(key) != found.get(key))
        raise IntegrityBroken(
            f"expected a delta of the lineage's inner parameters in {path}, got {found.get(name, 'none')} for {name}, "
            f"which is {expected.get(name, 'none of them')}: a delta of another base"
        )


def require_digest(base: BaseSpec, found: str) -> None:
    """Refuse a base that is another than the one that was named.

    Raises:
        WrongBase: with both digests.
    """
    if found != base.digest:
        raise WrongBase(f"expected base digest {base.digest} in {base.ref}, got {found}")


def require_encodable(model: EditableModel, edits: Sequence[Edit]) -> None:
    """Refuse edits that cannot be asked of this model: a target that is no label, a prompt that is too long, a chat
    that the template does not take or whose text would begin turns of its own.

    Raises:
        EditorFailed: naming the first edit, so that halving the batch finds it and the others go on.
    """
    for edit in edits:
        try:
            if model.has_chat_template:
                for text in _sent_for_a_chat(edit):
                    require_plain(model.tokenizer, text)
            asked = questions_of(edit)
            for prompt, target in (*asked.targets, *asked.alternatives):
                model.encode_pair(prompt, target, edit.request.subject)
            if asked.question is not None:
                model.encode_prompt(asked.question)
            for probe in edit.request.locality:
                model.encode_prompt(probe.prompt)
                if probe.target:
                    model.encode_pair(probe.prompt, probe.target)
        except InvalidInput as error:
            raise EditorFailed(f"edit {edit.edit_id} cannot be made: {error}", edit_id=edit.edit_id) from error


def _sent_for_a_chat(edit: Edit) -> tuple[str, ...]:
    """Return what a producer sent to be put into a chat; a stem alone may have a template of its own in it."""
    request = edit.request
    turns = (turn.content for turn in request.messages)
    return (*turns, *(text for text in (request.question, request.answer) if text))


def require_finite(measurements: Measurements) -> None:
    """Refuse figures that no threshold can judge.

    Raises:
        EditorFailed: naming the first one that is NaN or infinite.
    """
    models = measurements.candidate, measurements.parent, measurements.base
    records: tuple[EditScore | ModelScore | Measurements, ...] = (*measurements.edits, *models, measurements)
    for record in records:
        for field in fields(record):
            value = getattr(record, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise EditorFailed(f"expected finite measurements, got {value} for {field.name}")
