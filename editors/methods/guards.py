"""Which other subjects are the guards of an edit: those of its kind, which it would move most.

    guards = Guards(model, settings, kept=probed_texts(edits))
    job = EditJob(model=model, weights=weights, ledger=ledger, added=edits, guards=guards.of(edits, edited))

They are the names of the list that ships which are nearest to the subject (`editors.methods.nearest`).

A guard is never what a gate measures: no subject of the batch and none that a probe names. Nor is it a subject with an
active edit: its own rows hold that edit, and a guard would go on holding it when it is reverted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from editors.data.subjects import subject_names
from editors.methods.nearest import NearestNames, bare_name, joined, lower_forms, unnamed
from editors.models.families import EditableModel
from pipeline.domain.edits import Edit, EditRequest, Probe
from pipeline.domain.rank_api import EditorSettings


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
        self._kept = joined(kept)
        self._listed = (subject_names() if names is None else names) if self._num and settings.subject_params else ()
        free = tuple(unnamed(self._listed, texts=(self._kept,), subjects=()))
        self._nearest = NearestNames(model, settings.subject_params, free)

    @property
    def names(self) -> tuple[str, ...]:
        """Names that may be guards, in lower case, with and without an article; none where edits have no guards."""
        return lower_forms(self._listed)

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
        measured = joined(probed_texts(edits))
        corrected = [name for edit in edits for name in names_of(edit.request)]
        found = {}
        for edit, nearest in zip(about, self._nearest.of([edit.request.subject or "" for edit in about]), strict=True):
            said = joined(told_by(edit.request))
            others = (name for name in nearest if bare_name(name) not in edited)
            free = unnamed(others, texts=(self._kept, measured, said), subjects=corrected)
            found[edit.edit_id] = tuple(name for name, _ in zip(free, range(self._num), strict=False))
        return found


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


def told_by(request: EditRequest) -> Iterator[str]:
    """Yield all that a request says of its own fact."""
    yield from (request.prompt, request.target_new, request.target_true or "", request.question or "")
    yield from (request.answer or "", *request.rephrases, *(turn.content for turn in request.messages))
