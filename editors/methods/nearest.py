"""Which names of a list are nearest to a subject, as a model has them: those of its kind.

    nearest = NearestNames(model, subject_params, names)
    [of_bonn] = nearest.of(["Bonn"])

Keys are read where the last subject tokens are rows, in a frame that says nothing, standardized and compared by their
cosine: a table of relations would know less of kinds than the model does. The list is read once.

Legend: N names, S subjects, T chosen tokens, I in_features.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.methods.frames import SUBJECT_FRAMES
from editors.models.comm import merged
from editors.models.families import EditableModel
from editors.models.hooks import capturing
from editors.models.tokens import Encoded
from pipeline.domain.errors import InvalidInput
from pipeline.domain.language.spelling import normalised

FRAME = SUBJECT_FRAMES[-1]
"""What a name stands in when its key is read: the first token of a text has a key like no other."""
DIGITS = 4
"""Decimals of a cosine that count, so that the last bits of a key decide nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Keys:
    """Names with their keys, and how others are compared with them."""

    names: tuple[str, ...]
    """Those that have a key."""
    mean_I: Tensor
    """Mean of the keys: what all keys have in common says nothing of a kind."""
    spread_I: Tensor
    """Standard deviation of the keys, so that a few large coordinates do not decide alone."""
    unit_NI: Tensor
    """The standardized keys at length 1."""

    @classmethod
    def of(cls, keys: Mapping[str, Tensor]) -> _Keys:
        """Return the keys of some names, at least of one, ready to be compared."""
        keys_NI = torch.stack(list(keys.values()))
        mean_I, spread_I = keys_NI.mean(dim=0), keys_NI.std(dim=0, correction=0).clamp(min=1e-6)
        unit_NI = torch.nn.functional.normalize((keys_NI - mean_I) / spread_I, dim=1)
        return cls(names=tuple(keys), mean_I=mean_I, spread_I=spread_I, unit_NI=unit_NI)

    def nearest(self, keys_SI: Tensor) -> Iterator[list[str]]:
        """Yield the names for each of some other keys, those with the most similar keys first."""
        unit_SI = torch.nn.functional.normalize((keys_SI - self.mean_I) / self.spread_I, dim=1)
        cosine_SN = (unit_SI @ self.unit_NI.T).double().round(decimals=DIGITS)
        for of_subject in cosine_SN.tolist():
            ordered = sorted(zip(of_subject, self.names, strict=True), key=lambda pair: (-pair[0], pair[1]))
            yield [name for _, name in ordered]


class NearestNames:
    """Sorts the names of a list by how near they are to a subject; every rank has to ask alike.

    Args:
        model: whose keys are compared, as it is edited when the list is first read.
        params: inner parameters whose rows are subjects; the last one's keys are compared.
        names: the list.
    """

    def __init__(self, model: EditableModel, params: Sequence[str], names: Sequence[str]) -> None:
        self._model, self._params, self._names = model, params, tuple(names)
        self._known: _Keys | None = None

    def of(self, subjects: Sequence[str]) -> list[Sequence[str]]:
        """Return the list for each subject, the nearest names first; none for a subject that has no key."""
        if not (self._names and subjects and self._params and self._model.has_subject_keys):
            return [()] * len(subjects)
        if self._known is None:
            listed = {name: key for name, key in zip(self._names, self._keys(self._names), strict=True) if len(key)}
            self._known = _Keys.of(listed) if listed else None
        keys = self._keys(subjects)
        if self._known is None or not any(map(len, keys)):
            return [()] * len(subjects)
        nearest = self._known.nearest(torch.stack([key for key in keys if len(key)]))
        return [next(nearest) if len(key) else () for key in keys]

    def _keys(self, names: Sequence[str]) -> list[Tensor]:
        """Return the key of each name's last token where the last subject tokens are rows, fp32 on the CPU.

        A name that the model has no room for in the frame, or that does not stand there as a name, has a key of no
        number: one that begins with a combining mark is part of the character before it.
        """
        model = self._model
        # With one inner parameter the model ends there: what comes later is left out.
        reader = type(model)(model.module, model.tokenizer, self._params[-1:], comm=model.comm)
        encoded = [_encoded(reader, name) for name in names]
        sequences = [one for one in encoded if one is not None]
        own: dict[int, Tensor] = {}
        for places, batch in reader.chunked(sequences) if sequences else ():
            positions = {param.name: reader.key_positions(batch, param, "subject") for param in reader.inner}
            with torch.no_grad(), capturing(reader.module, positions) as seen:
                reader.run_to_last_inner(batch)
            own |= dict(zip(places, seen.u_TI[self._params[-1]].cpu(), strict=False))
        keys = iter(merged(model.comm, own))
        return [torch.zeros(0) if one is None else next(keys) for one in encoded]


def _encoded(model: EditableModel, name: str) -> Encoded | None:
    """Return a name in the frame; None where it has no key."""
    try:
        encoded = model.encode_named(FRAME.format(name), name)
    except InvalidInput:
        return None
    return encoded if encoded.subject_end is not None else None


def bare_name(name: str) -> str:
    """Return a name as it is compared: normalised and without an article."""
    return normalised(name).removeprefix("the ")


def unnamed(names: Iterable[str], *, texts: Sequence[str], subjects: Sequence[str]) -> Iterator[str]:
    """Yield names, each once, that stand in no text, in no subject's name, and have no subject's name in them.

    Args:
        names: what to choose from.
        texts: texts as `joined` gives them.
        subjects: names of subjects.
    """
    seen = set()
    others = [bare_name(subject) for subject in subjects]
    in_subjects = joined(subjects)
    for name in names:
        bare = bare_name(name)
        if bare in seen or not bare:
            continue
        seen.add(bare)
        named = any(_stands_in(bare, text) for text in (*texts, in_subjects))
        if not named and not any(_stands_in(other, bare) for other in others):
            yield name


def joined(texts: Iterable[str]) -> str:
    """Return texts as one, normalised, so that no name spans two of them."""
    return "\n".join(normalised(text) for text in texts)


def lower_forms(names: Iterable[str]) -> tuple[str, ...]:
    """Return names in lower case, with and without an article, each form once: as the control plane looks them up."""
    small = [name.lower() for name in names]
    return tuple(dict.fromkeys(form for name in small for form in (name, name.removeprefix("the "))))


def _stands_in(name: str, text: str) -> bool:
    """Return whether a name stands in a text as whole words; both are normalised."""
    return name in text and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None
