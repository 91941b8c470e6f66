"""What is averaged over edits, over their ages and over samples of them; each figure against one worked out by hand."""

from __future__ import annotations

import math

import pytest

from editors.evaluation.metrics import averaged, fluency, harmonic, replies, retention, weighted_entropy
from editors.evaluation.protocols import Protocol
from editors.measure.free_answers import FreeAnswer
from editors.measure.questions import ChatReply, EditMeasurement, NeighbourMeasurement, PromptMeasurement
from editors.measure.scoring import Change, Score
from pipeline.domain.edits import Edit
from pipeline.domain.measurements import mean
from tests.support.factories import make_edit


def asked(
    is_success: bool = True,
    *,
    token_fraction: float | None = None,
    prefers_new: bool | None = None,
    is_free: bool | None = None,
    is_free_in_chat: bool | None = None,
) -> PromptMeasurement:
    """A prompt with a target of four tokens."""
    num_hits = round(4 * (float(is_success) if token_fraction is None else token_fraction))
    score = Score(hits=tuple(place < num_hits for place in range(4)), mean_log_probability=-1.0)
    true = {True: -2.0, False: 0.0, None: None}[prefers_new]
    return PromptMeasurement(
        score=score,
        true=None if true is None else Score(hits=(True,), mean_log_probability=true),
        free=None if is_free is None else FreeAnswer(text="", is_success=is_free, is_success_in_chat=is_free_in_chat),
    )


def neighbour(is_unchanged: bool, kl: float, prefers_true: bool | None = None) -> NeighbourMeasurement:
    return NeighbourMeasurement(from_base=Change(is_unchanged=is_unchanged, kl=kl), prefers_true=prefers_true)


def measured(edits: list[Edit], held: set[int]) -> list[EditMeasurement]:
    return [EditMeasurement(edit_id=edit.edit_id, own=asked(i in held)) for i, edit in enumerate(edits)]


def edits_in(count: int) -> list[Edit]:
    return [make_edit(f"edit-{i}") for i in range(count)]


def test_every_figure_is_the_mean_of_what_was_asked() -> None:
    found = averaged(
        [
            EditMeasurement(
                edit_id="one",
                own=asked(True, prefers_new=True, is_free=True, is_free_in_chat=False),
                same_context=(asked(False, token_fraction=0.5, prefers_new=True, is_free=False),),
                other_context=(asked(True),),
                unnamed=(asked(False), asked(True)),
                row_rephrases=(asked(True), asked(True), asked(True), asked(False)),
                reply=ChatReply(question="who?", text="him", is_right=True),
                portability=(asked(True, is_free=True), asked(False)),
                neighbours=(neighbour(is_unchanged=True, kl=0.25, prefers_true=True),),
            ),
            EditMeasurement(
                edit_id="two",
                own=asked(False, token_fraction=0.25, prefers_new=False),
                neighbours=(
                    neighbour(is_unchanged=False, kl=0.5, prefers_true=False),
                    neighbour(is_unchanged=False, kl=0.75),
                ),
            ),
        ]
    )
    assert found["edit_success"] == 0.5
    assert found["token_fraction"] == 0.625
    assert (found["generalization"], found["generalization_token_fraction"]) == (0.5, 0.75)
    assert (found["generalization_same_context"], found["num_generalization_same_context"]) == (0.0, 1)
    assert (found["generalization_other_context"], found["num_generalization_other_context"]) == (1.0, 1)
    assert (found["generalization_unnamed"], found["num_generalization_unnamed"]) == (0.5, 2)
    assert (found["row_rephrases"], found["chat_success"], found["num_chat_success"]) == (0.75, 1.0, 1)
    assert found["portability"] == 0.5  # the rephrases that do not name the subject are among it
    assert found["locality_unchanged"] == pytest.approx(1 / 3)
    assert found["locality_kl"] == 0.5
    assert (found["prefers_new"], found["generalization_prefers_new"], found["neighbourhood"]) == (0.5, 1.0, 0.5)
    assert found["score"] == pytest.approx(3 / (1 / 0.5 + 1 / 1.0 + 1 / 0.5))
    asked_freely = {name: value for name, value in found["greedy"].items() if value is not None}
    assert asked_freely == {
        "edit_success": 1.0,
        "generalization": 0.0,
        "generalization_same_context": 0.0,
        "portability": 1.0,
    }
    assert {name: value for name, value in found["chat"].items() if value is not None} == {"edit_success": 0.0}
    assert found["measured"] == {
        "edits": 2,
        "rephrases": 2,
        "portability": 4,
        "neighbours": 3,
        "preferences": 2,
        "greedy": 1,
        "chat": 1,
    }


def test_what_was_not_asked_is_none_and_never_a_number() -> None:
    found = averaged([EditMeasurement(edit_id="one", own=asked(True))])
    assert found["generalization"] is found["locality_kl"] is found["prefers_new"] is found["score"] is None
    assert found["greedy"]["edit_success"] is None
    assert found["chat_success"] is found["generalization_other_context"] is found["row_rephrases"] is None
    assert found["num_chat_success"] == found["num_generalization_other_context"] == 0
    assert averaged([])["edit_success"] is None
    assert mean([None, 2.0, None]) == 2.0


def test_the_harmonic_mean_is_zero_with_a_zero_and_none_with_a_gap() -> None:
    assert harmonic([1.0, 0.5]) == pytest.approx(2 / 3)
    assert harmonic([1.0, 0.0]) == 0.0
    assert harmonic([1.0, None]) is None
    assert harmonic([]) is None


def test_retention_is_told_by_age_and_by_batch() -> None:
    edits = edits_in(20)
    history = [edits[:4], edits[4:16], edits[16:]]
    found = retention(measured(edits, held={1, 2, 3, *range(10, 20)}), [], history)
    assert found["retention_deciles"] == [0.5, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert found["retention_first_tenth"] == 0.5
    assert found["retention_first_batch"] == 0.75
    assert found["retention"] == 9 / 16


def test_retention_counts_only_edits_that_are_still_active() -> None:
    edits = edits_in(20)
    found = retention(measured(edits, held=set())[2:], [], [edits[:2], edits[2:]])
    assert found["retention_first_tenth"] is found["retention_first_batch"] is None


def test_the_first_batch_is_measured_whole_beside_the_sample() -> None:
    edits = edits_in(10)
    figures = measured(edits, held={0, 5})
    found = retention([figures[0], figures[5]], figures[1:4], [edits[:4], edits[4:]])
    assert found["retention_first_batch"] == 0.25
    assert found["retention_first_tenth"] == 1.0


def test_samples_are_nested_spread_over_age_and_the_same_for_a_seed() -> None:
    edits = edits_in(100)
    sizes = Protocol(sample=20, free_sample=8)
    asked, preferring, free = sizes.chosen(edits, seed="7", is_end=False)
    assert (len(asked), len(preferring), len(free)) == (20, 5, 2)
    assert free < preferring < {edit.edit_id for edit in asked}
    places = [edits.index(edit) for edit in asked]
    assert all(5 * i <= place < 5 * (i + 1) for i, place in enumerate(places))
    assert sizes.chosen(edits, seed="7", is_end=False)[0] == asked
    assert sizes.chosen(edits, seed="8", is_end=False)[0] != asked
    assert [len(some) for some in sizes.chosen(edits, seed="7", is_end=True)] == [100, 20, 8]


@pytest.mark.parametrize(
    ("every", "expected"),
    [(None, [32, 64, 128, 256, 320]), (100, [128, 224, 320]), (0, [320])],
)
def test_checkpoints_come_at_about_powers_of_two_or_as_often_as_asked(every: int | None, expected: list[int]) -> None:
    protocol = Protocol(checkpoint_every=every)
    starts = range(0, 320, 32)
    assert [start + 32 for start in starts if protocol.is_checkpoint(start, start + 32, 320)] == expected


def test_entropy_of_a_text_is_that_of_its_two_and_three_grams() -> None:
    text = "a b a b a c"  # bigrams ab ab ba ba ac, trigrams aba aba bab bac
    bigrams = -(2 * 0.4 * math.log2(0.4) + 0.2 * math.log2(0.2))
    trigrams = -(0.5 * math.log2(0.5) + 2 * 0.25 * math.log2(0.25))
    assert weighted_entropy(text) == pytest.approx((2 / 3 * bigrams + 4 / 3 * trigrams) / 2)


def test_a_text_that_repeats_itself_is_not_fluent() -> None:
    assert weighted_entropy("no no no no no no") == 0.0
    assert weighted_entropy("one two three four five six") > weighted_entropy("one two one two one two") > 0
    assert fluency(["a b c", "a b c"]) == pytest.approx(weighted_entropy("a b c"))
    assert fluency([]) is None
    assert weighted_entropy("") == 0.0


def test_every_reply_is_listed_with_its_question_and_its_verdict() -> None:
    replied = EditMeasurement(edit_id="one", own=asked(), reply=ChatReply(question="who?", text="him", is_right=False))
    listed = {"edit_id": "one", "question": "who?", "text": "him", "is_right": False}
    assert replies([replied, EditMeasurement(edit_id="two", own=asked())]) == [listed]
