"""Which other subjects are the guards of an edit: those of its kind, which it would move most.

    guards = Guards(model, settings, kept=probed_texts(edits))
    job = EditJob(model=model, weights=weights, ledger=ledger, added=edits, guards=guards.of(edits, edited))

They are names of the list that ships, those whose keys are nearest to the subject's. Keys are read where the last
subject tokens are rows, in a frame that says nothing, standardized and compared by their cosine: a table of relations
would know less of kinds than the model does. The list is read once.

A guard is never what a gate measures: no subject of the batch and none that a probe names. Nor is it a subject with an
active edit: its own rows hold that edit, and a guard would go on holding it when it is reverted.

Legend: N names, S subjects, T chosen tokens, I in_features.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.data.subjects import subject_names
from editors.methods.frames import SUBJECT_FRAMES
from editors.models.comm import merged
from editors.models.families import EditableModel
from editors.models.hooks import capturing
from pipeline.domain.edits import Edit, EditRequest, Probe
from pipeline.domain.language.spelling import normalised
from pipeline.domain.rank_api import EditorSettings

FRAME = SUBJECT_FRAMES[-1]
"""What a name stands in when its key is read: the first token of a text has a key like no other."""
DIGITS = 4
"""Decimals of a cosine that count, so that the last bits of a key decide nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Names:
    """The names of the list that may be guards, and how their keys are compared."""

    names: tuple[str, ...]
    """In the order of the list."""
    mean_I: Tensor
    """Mean of their keys: what all keys have in common says nothing of a kind."""
    spread_I: Tensor
    """Standard deviation of their keys, so that a few large coordinates do not decide alone."""
    unit_NI: Tensor
    """Their standardized keys at length 1."""

    @classmethod
    def of(cls, names: tuple[str, ...], keys_NI: Tensor) -> _Names:
        """Return some names with their keys."""
        mean_I, spread_I = keys_NI.mean(dim=0), keys_NI.std(dim=0, correction=0).clamp(min=1e-6)
        unit_NI = torch.nn.functional.normalize((keys_NI - mean_I) / spread_I, dim=1)
        return cls(names=names, mean_I=mean_I, spread_I=spread_I, unit_NI=unit_NI)

    def units(self, keys_SI: Tensor) -> Tensor:
        """Return other keys as those of the list are compared, S x I."""
        return torch.nn.functional.normalize((keys_SI - self.mean_I) / self.spread_I, dim=1)


class Guards:
    """Chooses the guards of edits on one model.

    Args:
        model: whose keys are compared, as it is edited when the list is first read.
        settings: how many guards an edit has, and which inner parameters have rows at subjects.
        kept: texts whose subjects are measured; no name that stands in one of them is ever a guard.
        names: the list; the one that ships if left out.
    """

    def __init__(
        self,
        model: EditableModel,
        settings: EditorSettings,
        *,
        kept: Iterable[str] = (),
        names: Sequence[str] | None = None,
    ) -> None:
        self._num = settings.num_guards if settings.frames_per_pass and model.has_subject_keys else 0
        self._model, self._params = model, settings.subject_params
        self._kept = _joined(kept)
        self._listed = subject_names() if names is None else names
        self._known: _Names | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names that may be guards, in lower case, with and without an article; none where edits have no guards."""
        found = [name.lower() for name in self._listed] if self._num and self._params else []
        return tuple(dict.fromkeys(form for name in found for form in (name, name.removeprefix("the "))))

    def of(self, edits: Sequence[Edit], edited: Collection[str] = ()) -> dict[str, tuple[str, ...]]:
        """Return the guards of each edit that has a subject, by edit id; every rank has to ask.

        Models without subject keys have none: their edits are not asked at subjects.

        Args:
            edits: a batch.
            edited: names of subjects that active edits are about, as `bare_name` gives them.
        """
        about = [edit for edit in edits if edit.request.subject]
        if not self._num or not about:
            return {}
        measured = _joined(probed_texts(edits))
        corrected = [name for edit in edits for name in names_of(edit.request)]
        found = {}
        for edit, nearest in zip(about, self._nearest([edit.request.subject or "" for edit in about]), strict=True):
            said = _joined(_texts_of(edit.request))
            others = (name for name in nearest if bare_name(name) not in edited)
            free = _free(others, texts=(self._kept, measured, said), subjects=corrected)
            found[edit.edit_id] = tuple(name for name, _ in zip(free, range(self._num), strict=False))
        return found

    def _nearest(self, subjects: Sequence[str]) -> list[Sequence[str]]:
        """Return the list for each subject, the nearest names first; none where no key can be compared."""
        if self._known is None:
            self._known = self._read_list()
        known = self._known
        if known is None:
            return [()] * len(subjects)
        names = known.names
        cosine_SN = (known.units(self._keys(subjects)) @ known.unit_NI.T).double().round(decimals=DIGITS)
        return [
            [names[place] for place in sorted(range(len(names)), key=lambda place: (-of_subject[place], names[place]))]
            for of_subject in cosine_SN.tolist()
        ]

    def _read_list(self) -> _Names | None:
        """Read the keys of the names that may be guards; None if there are none."""
        names = tuple(_free(self._listed, texts=(self._kept,), subjects=())) if self._params else ()
        return _Names.of(names, self._keys(names)) if names else None

    def _keys(self, names: Sequence[str]) -> Tensor:
        """Return the key of each name's last token where the last subject tokens are rows, fp32 on the CPU."""
        model = self._model
        # With one inner parameter the model ends there: what comes later is left out.
        reader = type(model)(model.module, model.tokenizer, self._params[-1:], comm=model.comm)
        sequences = [reader.encode_named(FRAME.format(name), name) for name in names]
        own: dict[int, Tensor] = {}
        for places, batch in reader.chunked(sequences):
            positions = {param.name: reader.key_positions(batch, param, "subject") for param in reader.inner}
            with torch.no_grad(), capturing(reader.module, positions) as seen:
                reader.run_to_last_inner(batch)
            own |= dict(zip(places, seen.u_TI[self._params[-1]].cpu(), strict=False))
        return torch.stack(merged(model.comm, own))


def probed_texts(edits: Iterable[Edit]) -> Iterator[str]:
    """Yield prompts and answers of every probe of some edits that asks for something else than the edited fact."""
    for edit in edits:
        for probe in (*edit.request.locality, *edit.request.portability):
            yield from texts_of_probe(probe)


def texts_of_probe(probe: Probe) -> Iterator[str]:
    """Yield the prompt and the answer of a probe, as far as it has one."""
    yield probe.prompt
    if probe.target:
        yield probe.target


def names_of(request: EditRequest) -> tuple[str, ...]:
    """Return the names that a request gives its subject; none without a subject."""
    return (request.subject, *request.aliases) if request.subject else ()


def bare_name(name: str) -> str:
    """Return a name as it is compared: normalised and without an article."""
    return normalised(name).removeprefix("the ")


def _texts_of(request: EditRequest) -> Iterator[str]:
    """Yield all that a request says of its own fact."""
    yield from (request.prompt, request.target_new, request.target_true or "", request.question or "")
    yield from (request.answer or "", *request.rephrases, *(turn.content for turn in request.messages))


def _free(names: Iterable[str], *, texts: Sequence[str], subjects: Sequence[str]) -> Iterator[str]:
    """Yield names, each once, that stand in no text and neither in a subject's name nor a subject's name in them."""
    seen = set()
    others = [bare_name(subject) for subject in subjects]
    in_subjects = _joined(subjects)
    for name in names:
        bare = bare_name(name)
        if bare in seen or not bare:
            continue
        seen.add(bare)
        named = any(_stands_in(bare, text) for text in (*texts, in_subjects))
        if not named and not any(_stands_in(other, bare) for other in others):
            yield name


def _stands_in(name: str, text: str) -> bool:
    """Return whether a name stands in a text as whole words; both are normalised."""
    return name in text and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def _joined(texts: Iterable[str]) -> str:
    """Return texts as one, normalised, so that no name spans two of them."""
    return "\n".join(normalised(text) for text in texts)
