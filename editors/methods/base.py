"""What an editor is: (model, weights, ledger, edits) in, a weight delta and ledger rows out; nothing is written."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from editors.models.families import EditableModel
from editors.solve.ledger import Ledger
from editors.solve.rows import EditRows
from editors.weights.deltas import WeightDelta, WeightStore
from pipeline.domain.edits import Edit


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
    """Passes made."""
    seconds: dict[str, float]
    """Wall time of `capture` and `solve`."""
    jitter: dict[str, float]
    """Inner parameters whose matrix was not positive definite as it was -> what was added to its diagonal."""

    @property
    def num_rows(self) -> int:
        """Ledger rows of the added edits."""
        return self.rows.num_rows


class Editor(Protocol):
    """Computes what an edit changes."""

    keeps_ledger: ClassVar[bool]
    """Whether the rows that it leaves define the weights, so that any edit can be taken out again."""

    def edit(
        self,
        model: EditableModel,
        weights: WeightStore,
        ledger: Ledger,
        added: Sequence[Edit],
        removed_ids: Collection[str],
    ) -> EditResult:
        """The change that adds some edits and takes others out; weights and ledger stay as they are.

        Raises:
            EditorFailed: if the numbers cannot be used.
        """
        ...
