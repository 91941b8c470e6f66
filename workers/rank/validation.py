"""Checks of what a rank is to hold, to try or to answer; each refuses in one sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import partial

from editors.measure.scorer import questions_of
from editors.models.families import EditableModel
from editors.models.inner_params import InnerParam
from editors.models.text_tokens import require_known, require_plain
from editors.weights.deltas import WeightDelta
from pipeline.domain.edits import Edit, Probe
from pipeline.domain.errors import EditorFailed, IntegrityBroken, InvalidInput
from pipeline.domain.measurements import EditScore, Measurements, ModelScore


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


def require_encodable(model: EditableModel, edits: Sequence[Edit]) -> None:
    """Refuse edits that cannot be asked of this model: a target that is no label or that its tokenizer cannot write, a
    text that is too long, of which it knows no word or that holds one of its own tokens, a chat that the template does
    not take.

    Raises:
        EditorFailed: naming the first edit and the field, so that halving the batch finds it and the others go on.
    """
    for edit in edits:
        for field, check in _checks(model, edit):
            try:
                check()
            except InvalidInput as error:
                at = f"{field}: " if field else ""
                raise EditorFailed(f"edit {edit.edit_id} cannot be made: {at}{error}", edit_id=edit.edit_id) from error


def encodable(model: EditableModel, edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """Return the edits that can still be asked of this model: rules may have become stricter since one was made."""

    def passes(edit: Edit) -> bool:
        try:
            require_encodable(model, [edit])
        except EditorFailed:
            return False
        return True

    return tuple(filter(passes, edits))


def askable(model: EditableModel, edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """Return the edits whose own prompt and target this model can still read: more than `encodable` returns."""

    def passes(edit: Edit) -> bool:
        try:
            model.encode_pair(edit.request.own_prompt, edit.request.target_new)
        except InvalidInput:
            return False
        return True

    return tuple(filter(passes, edits))


def _checks(model: EditableModel, edit: Edit) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what is to be tried of an edit, with its field; the edit's own prompt and target need none."""
    request, tokenizer = edit.request, model.tokenizer
    for number, turn in enumerate(request.messages):
        yield f"messages[{number}]", partial(require_plain, tokenizer, turn.content)
    plain = {"question": request.question, "answer": request.answer, "subject": request.subject}
    plain |= {f"aliases[{number}]": alias for number, alias in enumerate(request.aliases)}
    for field, text in plain.items():
        if text:
            yield field, partial(require_plain, tokenizer, text)
    yield "", partial(model.encode_pair, request.own_prompt, request.target_new, request.subject)
    if request.subject:
        yield "", partial(require_known, tokenizer, request.subject, "a subject")
    for number, rephrase in enumerate(request.rephrases):
        yield f"rephrases[{number}]", partial(model.encode_pair, rephrase, request.target_new)
    asked = questions_of(edit)
    if request.target_true is not None:
        yield "target_true", partial(model.encode_pair, request.own_prompt, request.target_true)
    if asked.question is not None:
        yield "messages" if request.messages else "question", partial(model.encode_prompt, asked.question)
    for kind, probes in (("locality", request.locality), ("portability", request.portability)):
        for number, probe in enumerate(probes):
            yield f"{kind}[{number}]", partial(_encode_probe, model, probe)


def _encode_probe(model: EditableModel, probe: Probe) -> None:
    model.encode_prompt(probe.prompt)
    if probe.target:
        model.encode_pair(probe.prompt, probe.target)


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
