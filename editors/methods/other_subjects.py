"""Which other subjects gates ask an edit's own prompt about: subjects of the relation, and the nearest of a list.

    chosen = OtherSubjectChoice(model, settings, suite=reference.suite)
    others = chosen.of(edits, edited=names, related=related, guards=guards)

A name comes from an earlier request of the relation, from the lineage's suite, and from a list that ships of names that
are never guards: those nearest to the subject. None of them has an active edit or one in the batch, none is a guard of
the edit, and none stands in what the request says.

Where a request names no subject its prompt may: a name of the lists, or a guess. Such edits need it most, because
nothing holds their neighbours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from editors.data.subjects import OTHER_SUBJECTS, of_same_kind, subject_names
from editors.measure.other_subjects import OtherSubject, can_ask
from editors.methods.guards import names_of, told_by
from editors.methods.nearest import NearestNames, bare_name, joined, lower_forms, unnamed
from editors.models.families import EditableModel
from pipeline.domain.edits import Edit, EditRequest
from pipeline.domain.language.guessing import guessed_subject
from pipeline.domain.language.names import last_mention
from pipeline.domain.language.spelling import normalised
from pipeline.domain.rank_api import EditorSettings, SuiteProbe

NUM_OTHERS = 4
"""Other subjects that an edit's prompt is asked about."""
FROM_EACH = 1
"""Of them, names from earlier requests, and names from the suite, at most."""


class OtherSubjectChoice:
    """Chooses other subjects for edits on one model.

    Args:
        model: whose keys say which names are near, as it is edited when the list is first read.
        settings: which inner parameters have rows at subjects.
        suite: what the lineage's suite asks.
        names: the list; the one that ships if left out.
        num_others: how many an edit has.
    """

    def __init__(
        self,
        model: EditableModel,
        settings: EditorSettings,
        *,
        suite: Iterable[SuiteProbe] = (),
        names: Sequence[str] | None = None,
        num_others: int = NUM_OTHERS,
    ) -> None:
        self._model, self._num = model, num_others
        self._listed = subject_names(OTHER_SUBJECTS) if names is None else tuple(names)
        self._suite = tuple(
            (item.subject, normalised(item.relation)) for item in suite if item.subject and item.relation
        )
        in_suite = [subject for subject, _ in self._suite]
        self._known_names = dict.fromkeys((*subject_names(), *self._listed, *in_suite))
        self._nearest = NearestNames(model, settings.subject_params, self._listed)

    @property
    def names(self) -> tuple[str, ...]:
        """Names that may be asked about, in lower case, with and without an article."""
        return lower_forms((*self._listed, *(name for name, _ in self._suite)))

    def of(
        self,
        edits: Sequence[Edit],
        *,
        edited: Collection[str] = (),
        related: Mapping[str, Sequence[str]] | None = None,
        guards: Mapping[str, Sequence[str]] | None = None,
    ) -> dict[str, tuple[OtherSubject, ...]]:
        """Return what each edit is asked about other subjects, by edit id; every rank has to ask.

        Args:
            edits: a batch.
            edited: names of subjects that active edits are about, as `bare_name` gives them.
            related: subjects of earlier requests of an edit's relation that no active edit is about, by edit id.
            guards: the guards of each edit.
        """
        subjects = {edit.edit_id: self._subject(edit.request) for edit in edits}
        about = [(edit, subject) for edit in edits if (subject := subjects[edit.edit_id])]
        corrected = [name for edit in edits for name in (*names_of(edit.request), subjects[edit.edit_id]) if name]
        nearest = self._nearest.of([subject for _, subject in about])
        found = {}
        for (edit, subject), near in zip(about, nearest, strict=True):
            barred = {*edited, *map(bare_name, (guards or {}).get(edit.edit_id, ()))}
            earlier = (related or {}).get(edit.edit_id, ())
            listed = near or of_same_kind(subject)
            found[edit.edit_id] = self._of_edit(
                edit.request, subject, earlier, listed, barred=barred, corrected=corrected
            )
        return found

    def _subject(self, request: EditRequest) -> str | None:
        """Return what an edit is about: its subject, or where the prompt does not name one, the name that it does.

        That is the longest one of the lists, else a guess.
        """
        if request.names_subject:
            return request.subject
        own = request.own_prompt
        text = own if isinstance(own, str) else own.question
        said = normalised(text)
        listed = [name for name in self._known_names if normalised(name) in said and last_mention(text, name)]
        return max(listed, key=len, default=None) or guessed_subject(text)

    def _of_edit(
        self,
        request: EditRequest,
        subject: str,
        earlier: Sequence[str],
        listed: Sequence[str],
        *,
        barred: Collection[str],
        corrected: Sequence[str],
    ) -> tuple[OtherSubject, ...]:
        relation = normalised(request.relation or "")
        in_suite = [name for name, of in self._suite if of == relation]
        chosen: list[OtherSubject] = []
        texts, probed = (joined(told_by(request)),), {probe.prompt for probe in request.locality}
        for source, names, most in (
            ("request", earlier, FROM_EACH),
            ("suite", in_suite, FROM_EACH),
            ("list", listed, self._num),
        ):
            # What has been taken bars the same name from another source.
            taken = {*barred, *(bare_name(one.name) for one in chosen)}
            free = (name for name in unnamed(names, texts=texts, subjects=corrected) if bare_name(name) not in taken)
            asked = (one for one in self._asked(request, subject, free, source) if one.prompt not in probed)
            chosen += [one for one, _ in zip(asked, range(min(most, self._num - len(chosen))), strict=False)]
        return tuple(chosen)

    def _asked(self, request: EditRequest, subject: str, names: Iterable[str], source: str) -> Iterator[OtherSubject]:
        replaced = None if request.names_subject else subject
        for name in names:
            prompt = request.own_prompt_about(name, subject=replaced)
            if prompt is not None and can_ask(self._model, prompt):
                yield OtherSubject(name=name, source=source, prompt=prompt)
