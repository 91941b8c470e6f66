"""What an editor is: a job in, a weight delta and ledger rows out; nothing is written.

result = editor.edit(EditJob(model=model, weights=weights, ledger=ledger, added=edits))
weights.apply(result.delta)
ledger.commit(result.rows, result.removed_ids)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from editors.models.families import EditableModel
from editors.solve.ledger import Ledger
from editors.solve.rows import EditRows
from editors.weights.deltas import WeightDelta, WeightStore
from pipeline.domain.edits import Edit
from pipeline.domain.errors import EditorFailed, InvalidInput


@dataclass(frozen=True, kw_only=True, slots=True)
class EditJob:
    """What an editor is asked to change, and on what."""

    model: EditableModel
    """The model, with the weights of the parent; they stay as they are."""
    weights: WeightStore
    """The edited weights of the model: the base and what was added to it."""
    ledger: Ledger
    """Rows of the parent's active edits; stays as it is."""
    added: Sequence[Edit] = ()
    """Edits to make; no two of one fact."""
    removed_ids: Collection[str] = ()
    """Active edits to take out, before the added ones come in."""
    guards: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Edit id -> other subjects whose keys in the edit's own prompt are held where they are."""

    def require_additions(self, solver: str) -> None:
        """Refuse what a solver without a ledger cannot do.

        Raises:
            InvalidInput: if an edit is to be removed.
            EditorFailed: if there is none to add.
        """
        if self.removed_ids:
            raise InvalidInput(f"expected the solver `recursive` to remove edits, got `{solver}`")
        if not self.added:
            raise EditorFailed("expected edits to add, got none")


@dataclass(frozen=True, kw_only=True, slots=True)
class EditResult:
    """A candidate's change, not applied yet."""

    delta: WeightDelta
    """What to add to the weights that were edited."""
    rows: EditRows
    """Ledger rows of the added edits; of none in a pure removal."""
    removed_ids: tuple[str, ...]
    """Edits whose ledger rows leave."""
    num_passes: int
    """Passes made over the batch, of all groups together."""
    seconds: dict[str, float]
    """Wall time of `capture` and `solve`."""
    jitter: dict[str, float]
    """Inner parameters whose matrix was not positive definite as it was -> what was added to its diagonal."""
    kept_bytes: int | None = None
    """Size of what has to be kept for the edits where it is not the delta; None where it is."""
    scaled_back: float | None = None
    """The least part that was left of what was asked, where a change would have passed its bound."""
    ledger: Ledger | None = None
    """The ledger that takes the place of the job's, where all was solved anew (see `rekeying`); else None."""
    batches: tuple[EditRows, ...] = ()
    """Where rows are others then: those of every active edit, in its order."""
    distance: float | None = None
    """The norm of the change then, as a part of the whole shift's, where that is most."""

    @property
    def num_rows(self) -> int:
        """Ledger rows of the added edits."""
        return self.rows.num_rows


class Editor(Protocol):
    """Computes what an edit changes."""

    keeps_ledger: ClassVar[bool]
    """Whether the rows that it leaves define the weights, so that any edit can be taken out again."""

    def edit(self, job: EditJob) -> EditResult:
        """Return the change that adds some edits and takes others out; weights and ledger stay as they are.

        Raises:
            EditorFailed: if nothing is asked, or the numbers cannot be used.
            InvalidInput: if an edit is to be removed and the editor keeps no ledger.
        """
        ...
