"""Un-edit: on a model that was taught facts, what is taken out is gone, the rest holds, and every way there agrees."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from editors.methods.base import EditJob, EditResult
from editors.methods.recursive import RecursiveEditor
from editors.methods.select import resolved
from editors.models.families import EditableModel
from editors.solve.ledger import Ledger
from editors.solve.linear import added_rows
from editors.solve.prior import Prior, measure_prior
from editors.solve.rows import EditRows
from editors.weights.deltas import PlainWeights, WeightDelta, load_accumulators, save_accumulators
from editors.weights.loading import load_base
from pipeline.domain.edits import Edit
from pipeline.domain.errors import EditorFailed
from pipeline.domain.rank_api import EditorSettings, FileRef, LedgerRows
from tests.support.ledger_parts import whole_shift
from tests.support.scored import score_pairs
from tests.support.taught import FACTS, correction, sentences

SETTINGS = EditorSettings(
    prior_strength=300.0,
    ridge=1e-3,
    damping=0.02,
    step=0.5,
    stop_probability=0.9,
    num_passes=20,
    frames_per_pass=0,
    num_guards=0,
    rephrase_rows=0,
)
"""Long steps: a natural gradient gains less a step, and with 0.3 the passes were used up before the edits rested."""
TOLERANCE = 2e-5
"""Relative distance (Frobenius) of weights that came about in other ways from the same rows. Measured: 1.8e-6 at most
between fp32 accumulators and the fp64 solve of all rows, which a condition number of 7e4 makes of fp32's 6e-8; the
solve itself moves by 1e-11 when rows change their order."""
HOLDS = 0.65
"""Probability down to which an edit may fall when others leave: keys of later blocks move when earlier ones change.
Measured: 0.75 at least; an edit that was asked for comes to rest at 0.9."""
CORRECTED = FACTS[::4]
"""Twelve facts, of twelve people."""
BATCH = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Rig:
    """A lineage on a taught model."""

    model: EditableModel
    """The model."""
    weights: PlainWeights
    """Its edited weights."""
    ledger: Ledger
    """Rows of its active edits."""

    def step(self, added: Sequence[Edit], removed_ids: Collection[str] = ()) -> EditResult:
        """Edit and keep."""
        result = RecursiveEditor(resolved(SETTINGS, self.model)).edit(
            EditJob(model=self.model, weights=self.weights, ledger=self.ledger, added=added, removed_ids=removed_ids)
        )
        self.weights.apply(result.delta)
        self.ledger.commit(result.rows, result.removed_ids)
        return result

    def probabilities(self, edits: Sequence[Edit]) -> list[float]:
        """Of what the edits ask for."""
        pairs = [(edit.request.prompt, edit.request.target_new) for edit in edits]
        return [score.probability for score in score_pairs(self.model, pairs)]

    def known(self) -> list[bool]:
        """For each fact, whether the model says what it was taught."""
        return [score.is_hit for score in score_pairs(self.model, [(fact.prompts[0], fact.value) for fact in FACTS])]

    def shifts(self) -> dict[str, torch.Tensor]:
        """What the weights are away from the base, fp64."""
        return {name: self.weights.shift(name).double().clone() for name in self.model.inner_param_names}

    def asked_by_rows(self) -> dict[str, torch.Tensor]:
        """What the ledger's rows define."""
        return {name: whole_shift(self.ledger, name) for name in self.model.inner_param_names}


@pytest.fixture(scope="module")
def prior(taught: Callable[[str], Path]) -> Prior:
    return measure_prior(load_base(taught("llama")), sentences(FACTS))


@pytest.fixture
def rig(taught: Callable[[str], Path], prior: Prior) -> Rig:
    model = load_base(taught("llama"))
    return Rig(
        model=model,
        weights=PlainWeights(model.module, model.inner),
        ledger=Ledger(prior, strength=SETTINGS.prior_strength, ridge=SETTINGS.ridge),
    )


EDITS = [correction(fact) for fact in CORRECTED]


def edited(rig: Rig) -> list[EditResult]:
    """Three batches of four corrections."""
    return [rig.step(EDITS[start : start + BATCH]) for start in range(0, len(EDITS), BATCH)]


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest relative distance of any inner parameter."""
    return max(float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected)


def drawn(seed: int) -> list[int]:
    draw = random.Random(seed)  # noqa: S311
    return sorted(draw.sample(range(len(EDITS)), draw.randint(2, 9)))


@pytest.mark.parametrize(
    "places",
    [[5], [0, 1, 2, 3], [8, 9, 10, 11], [0, 5, 10], [*range(1, 12)], *(drawn(seed) for seed in range(4))],
    ids=str,
)
def test_of_any_subset_that_is_taken_out_nothing_is_left_and_the_others_hold(rig: Rig, places: list[int]) -> None:
    edited(rig)
    assert min(rig.probabilities(EDITS)) > 0.75
    knew = rig.known()
    gone = [EDITS[place] for place in places]
    stay = [edit for edit in EDITS if edit not in gone]
    result = rig.step([], [edit.edit_id for edit in gone])
    assert result.num_rows == 0
    assert max(rig.probabilities(gone)) < 0.05
    assert min(rig.probabilities(stay)) > HOLDS
    assert rig.ledger.edit_ids == tuple(edit.edit_id for edit in stay)
    knows = rig.known()
    lost = [was and not still for was, still in zip(knew, knows, strict=True)]
    assert sum(lost) <= 4, "what was not edited stays, but for a few facts on the edge; measured: 2 of 48"
    assert sum(knows) >= sum(knew), "a model with fewer edits knows as much of what it was taught, or more"
    assert distance(rig.shifts(), rig.asked_by_rows()) < TOLERANCE


def test_without_any_of_its_edits_a_model_is_the_base_again(rig: Rig) -> None:
    edited(rig)
    norms = {name: shift.norm() for name, shift in rig.shifts().items()}
    rig.step([], [edit.edit_id for edit in EDITS])
    assert all(float(shift.norm()) < TOLERANCE * norms[name] for name, shift in rig.shifts().items())
    assert all(rig.known())


def test_what_was_taken_out_can_be_edited_again(rig: Rig) -> None:
    edited(rig)
    rig.step([], [EDITS[6].edit_id])
    again = correction(CORRECTED[6], place=1)
    rig.step([again])
    assert rig.probabilities([again])[0] > 0.75
    assert rig.probabilities([EDITS[6]])[0] < 0.1
    assert distance(rig.shifts(), rig.asked_by_rows()) < TOLERANCE


def test_incremental_rebuilt_and_reordered_weights_agree(rig: Rig) -> None:
    edited(rig)
    rig.step([correction(CORRECTED[2], place=1)], [EDITS[2].edit_id])
    rig.step([], [EDITS[0].edit_id, EDITS[9].edit_id])
    rebuilt = rig.asked_by_rows()
    assert distance(rig.shifts(), rebuilt) < TOLERANCE
    backwards = Ledger(
        rig.ledger.prior, strength=SETTINGS.prior_strength, ridge=SETTINGS.ridge, batches=rig.ledger.batches[::-1]
    )
    assert distance({name: whole_shift(backwards, name) for name in rebuilt}, rebuilt) < 1e-9
    for seed in range(3):
        assert distance(replayed(rig, seed), rebuilt) < TOLERANCE


def replayed(rig: Rig, seed: int) -> dict[str, torch.Tensor]:
    """The weights when the same rows come in edit by edit, in another order: fp32 accumulators, as in a stream."""
    order = list(rig.ledger.edit_ids)
    random.Random(seed).shuffle(order)  # noqa: S311
    ledger = Ledger(rig.ledger.prior, strength=SETTINGS.prior_strength, ridge=SETTINGS.ridge)
    shifts = {name: torch.zeros_like(shift).float() for name, shift in rig.shifts().items()}
    for edit_id in order:
        [rows] = [batch.only({edit_id}) for batch in rig.ledger.batches if edit_id in batch.edit_ids]
        for name, shift_IO in shifts.items():
            keys_TI, targets_TO = rows.keys_of(name).double(), rows.targets_of(name).double()
            factor_IT = added_rows(ledger.without().factor(name), keys_TI)
            shifts[name] = shift_IO + (factor_IT @ (targets_TO - keys_TI @ shift_IO.double())).float()
        ledger.commit(rows)
    return {name: shift.double() for name, shift in shifts.items()}


def test_edits_can_leave_one_by_one_in_any_order(rig: Rig) -> None:
    edited(rig)
    for place in (7, 0, 11, 4):
        rig.step([], [EDITS[place].edit_id])
    assert distance(rig.shifts(), rig.asked_by_rows()) < TOLERANCE
    assert max(rig.probabilities([EDITS[place] for place in (7, 0, 11, 4)])) < 0.2


def test_of_ten_corrections_of_one_fact_the_tenth_holds_and_the_first_nine_are_gone(rig: Rig) -> None:
    others, fact = EDITS[:4], CORRECTED[7]
    rig.step(others)
    corrections = [correction(fact, place=place) for place in range(10)]
    displaced: list[str] = []
    for edit in corrections:
        rig.step([edit], displaced)
        assert rig.probabilities([edit])[0] > 0.75, edit.request.target_new
        displaced = [edit.edit_id]
    *before, last = rig.probabilities(corrections)
    assert last > 0.75
    assert max(before) < 0.05
    assert min(rig.probabilities(others)) > HOLDS
    assert rig.ledger.edit_ids == (*(edit.edit_id for edit in others), corrections[-1].edit_id)
    assert distance(rig.shifts(), rig.asked_by_rows()) < TOLERANCE
    rig.step([], displaced)
    assert rig.known()[FACTS.index(fact)], "nine corrections left no trace: without the tenth the model says the fact"


def test_a_lineage_that_was_restored_has_the_bits_of_the_one_that_lived_and_goes_on_alike(
    rig: Rig, taught: Callable[[str], Path], tmp_path: Path
) -> None:
    steps = edited(rig)
    accumulator = tmp_path / "accumulator"
    digest = save_accumulators(accumulator, {name: shift.float() for name, shift in rig.shifts().items()})
    steps.append(rig.step([correction(CORRECTED[1], place=2)], [EDITS[1].edit_id]))
    prior_file = tmp_path / "prior"
    prior_digest = rig.ledger.prior.save(prior_file)
    active = set(rig.ledger.edit_ids)
    rows = [saved_rows(step.rows, tmp_path / f"rows-{place}", active) for place, step in enumerate(steps)]
    last = tmp_path / "delta"
    model = load_base(taught("llama"))
    restored = Rig(
        model=model,
        weights=PlainWeights(model.module, model.inner),
        ledger=Ledger.from_files(
            FileRef(path=str(prior_file), digest=prior_digest),
            rows,
            strength=SETTINGS.prior_strength,
            ridge=SETTINGS.ridge,
        ),
    )
    restored.weights.set_accumulators(load_accumulators(accumulator, digest))
    restored.weights.apply(WeightDelta.load(last, steps[-1].delta.save(last)))
    for name, shift in rig.shifts().items():
        assert torch.equal(restored.shifts()[name], shift)
        assert torch.equal(restored.ledger.without().matrix(name), rig.ledger.without().matrix(name))
        assert torch.equal(whole_shift(restored.ledger, name), whole_shift(rig.ledger, name))
        assert torch.equal(restored.model.module.get_parameter(name), rig.model.module.get_parameter(name))
    again = correction(FACTS[2]), correction(FACTS[6])
    results = [lineage.step(again, [EDITS[5].edit_id]) for lineage in (rig, restored)]
    digests = [(step.delta.save(tmp_path / "d"), step.rows.save(tmp_path / "r")) for step in results]
    assert digests[0] == digests[1]


def saved_rows(rows: EditRows, path: Path, active: set[str]) -> LedgerRows:
    edit_ids = tuple(edit_id for edit_id in rows.edit_ids if edit_id in active)
    return LedgerRows(file=FileRef(path=str(path), digest=rows.save(path)), edit_ids=edit_ids)


def test_keys_that_span_too_little_are_solved_with_a_jitter_that_is_reported(rig: Rig) -> None:
    flat = with_moments(rig.ledger.prior, rank_one)
    poor = Rig(model=rig.model, weights=rig.weights, ledger=Ledger(flat, strength=10.0, ridge=0.0))
    result = poor.step(EDITS[:2])
    assert set(result.jitter) == set(rig.model.inner_param_names)
    assert all(0 < jitter < 1e-4 for jitter in result.jitter.values())
    assert all(bool(torch.isfinite(shift).all()) for shift in poor.shifts().values())
    assert min(poor.probabilities(EDITS[:2])) > 0.75
    assert not rig.step(EDITS[2:4]).jitter


def with_moments(prior: Prior, change: Callable[[torch.Tensor], torch.Tensor]) -> Prior:
    """A prior of other keys; its gradients are what they were."""
    return replace(prior, moments={name: change(moment_II) for name, moment_II in prior.moments.items()})


def rank_one(moment_II: torch.Tensor) -> torch.Tensor:
    key_I = moment_II[0] / moment_II[0, 0].sqrt()
    return torch.outer(key_I, key_I)


@pytest.mark.parametrize(("factor", "strength"), [(-1.0, 10.0), (float("nan"), 10.0), (1.0, 0.0)])
def test_a_ledger_that_cannot_be_solved_says_where_and_changes_nothing(
    rig: Rig, factor: float, strength: float
) -> None:
    broken = Ledger(with_moments(rig.ledger.prior, lambda moment: moment * factor), strength=strength, ridge=0.0)
    with pytest.raises(EditorFailed, match=r"mlp\.down_proj"):
        RecursiveEditor(SETTINGS).edit(EditJob(model=rig.model, weights=rig.weights, ledger=broken, added=EDITS[:2]))
    assert not any(shift.any() for shift in rig.shifts().values())
    assert broken.edit_ids == ()
    assert all(rig.known())
