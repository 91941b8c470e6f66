"""What is measured of an edit, on tiny models against plain computations."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from editors.evaluation.probes import EditProbes
from editors.measure.prefix_cache import PrefixCache
from editors.measure.quality import Figure, prepared_quality
from editors.measure.reference import Reference, build_reference, own_answers
from editors.measure.scorer import Scorer, questions_of
from editors.measure.scoring import compared, prepare, readings, scores
from editors.measure.shown_answers import SHOWN_TOKENS
from editors.measure.undoing import negative_shift
from editors.methods.base import EditJob
from editors.methods.recursive import RecursiveEditor
from editors.models.families import CausalModel
from editors.models.hooks import side_branch
from editors.models.tokens import encode_pair
from editors.weights.deltas import WeightDelta
from pipeline.domain.edits import Edit, Probe
from pipeline.domain.errors import IntegrityBroken
from pipeline.domain.measurements import Measurements
from pipeline.domain.prompts import ChatTurn
from pipeline.domain.rank_api import SuiteProbe
from tests.support.factories import make_edit
from tests.support.ledger_parts import FACTS, SETTINGS, Rig, edits_of, make_rig, prior_lines
from tests.support.scored import score_pairs
from tests.support.tiny_models import TEXT

SUITE = [
    SuiteProbe(probe=Probe(prompt="the capital of Spain is", target="Madrid"), subject="Spain", relation="capital"),
    SuiteProbe(probe=Probe(prompt="Berlin is a city in"), subject=None, relation=None),
    SuiteProbe(probe=Probe(prompt="where was the queen", target="king of Rome"), subject=None, relation=None),
]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return make_rig(tmp_path)


@pytest.fixture
def reference(rig: Rig) -> Reference:
    return build_reference(rig.model, SUITE, TEXT)


def with_probes(place: int, **changes: object) -> Edit:
    prompt, target = FACTS[place]
    neighbours = (Probe(prompt="the river of Paris is", target="Lyon"), Probe(prompt="what language is"))
    fields: dict[str, object] = {
        "prompt": prompt,
        "target_new": target,
        "target_true": "Tokyo",
        "rephrases": ("Kyoto is", "what is"),
        "locality": neighbours,
        "portability": (Probe(prompt="spoken in", target="Japan"),),
    }
    return make_edit(f"fact-{place}", **(fields | changes))


def candidate(
    rig: Rig, scorer: Scorer, added: list[Edit], retained: list[Edit], *, keep: bool = True, remade: Sequence[Edit] = ()
) -> Measurements:
    """Edit, apply, measure; then keep, or go back."""
    saved = rig.weights.save()
    result = RecursiveEditor(SETTINGS).edit(
        EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=added)
    )
    scorer.observe_parent(added, retained)
    rig.weights.apply(result.delta)
    measured = scorer.measure(added=added, retained=retained, remade=remade, gone_keys=(), delta=result.delta)
    if keep:
        rig.ledger.commit(result.rows)
        scorer.keep()
    else:
        rig.weights.restore(saved)
    return measured


def plain_log_probabilities(model: CausalModel, prompt: str, target: str) -> torch.Tensor:
    pair = encode_pair(model.tokenizer, prompt, target)
    ids = torch.tensor([[*pair.prompt_ids, *pair.target_ids]])
    rows = model.module(ids).logits[0, len(pair.prompt_ids) - 1 : -1].log_softmax(1)
    return rows.detach()


def test_scores_are_those_of_one_sequence_at_a_time(rig: Rig) -> None:
    pairs = [*FACTS, ("Rome", "the capital city of Italy"), ("who", "is")]
    for (prompt, target), score in zip(pairs, score_pairs(rig.model, pairs), strict=True):
        rows = plain_log_probabilities(rig.model, prompt, target)
        ids = torch.tensor(encode_pair(rig.model.tokenizer, prompt, target).target_ids)
        assert list(score.hits) == (rows.argmax(1) == ids).tolist()
        assert score.mean_log_probability == pytest.approx(float(rows[range(len(ids)), ids].mean()), abs=1e-5)


def test_kl_is_that_of_whole_distributions_where_all_tokens_are_kept(rig: Rig) -> None:
    sequences = [encode_pair(rig.model.tokenizer, *fact) for fact in FACTS]
    prepared = prepare(rig.model, sequences)
    before = readings(rig.model, prepared)
    plain = [plain_log_probabilities(rig.model, *fact) for fact in FACTS]
    shift = {p.name: (torch.ones(p.in_features, 1), torch.randn(1, p.out_features) * 0.2) for p in rig.model.inner}
    rig.weights.apply(WeightDelta.of(shift))
    _, [changes] = compared(rig.model, prepared, [before])
    for fact, was, change in zip(FACTS, plain, changes, strict=True):
        now = plain_log_probabilities(rig.model, *fact)
        assert change.kl == pytest.approx(float((was.exp() * (was - now)).sum(1).mean()), abs=1e-4)
        assert change.is_unchanged == bool((was.argmax(1) == now.argmax(1)).all())
    assert max(change.kl for change in changes) > 0.01


def test_nothing_has_changed_before_an_edit(rig: Rig, reference: Reference) -> None:
    prepared = prepare(rig.model, [answer.sequence for answer in reference.suite])
    _, [changes] = compared(rig.model, prepared, [[answer.reading for answer in reference.suite]])
    assert all(change.is_unchanged and change.kl < 1e-5 for change in changes)


def test_perplexity_is_exp_of_the_mean_loss(rig: Rig, reference: Reference) -> None:
    losses = []
    for probe in reference.quality_probes:
        window = (*probe.sequence.prompt_ids, *probe.sequence.target_ids)
        rows = rig.model.module(torch.tensor([window])).logits[0, :-1].log_softmax(1)
        losses += (-rows[range(len(window) - 1), list(window[1:])]).tolist()
    assert reference.figure.accuracy is None
    assert reference.figure.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    again = scores(rig.model, prepared_quality(rig.model, reference.quality_probes))
    assert Figure.of(rig.model, again) == reference.figure


def test_own_answers_are_as_long_as_the_given_answer_or_eight_tokens(rig: Rig) -> None:
    found = own_answers(rig.model, [probe.probe for probe in SUITE])
    stopped = {int(token) for token in rig.model.stop_ids}
    for sequence, most in zip(found, (1, 8, 3), strict=True):
        assert 1 <= len(sequence.target_ids) <= most
        assert len(sequence.target_ids) == most or stopped
        rows = rig.model.module(torch.tensor([[*sequence.prompt_ids, *sequence.target_ids]])).logits[0]
        greedy = rows[len(sequence.prompt_ids) - 1 : -1].argmax(1).tolist()
        assert greedy == list(sequence.target_ids)


def test_a_reference_comes_back_as_it_was(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    digest = reference.save(path)
    again = Reference.load(path, digest)
    assert again.save(tmp_path / "again.json") == digest
    assert again.digest == reference.digest
    assert (again.quality_probes, again.scores, again.figure) == (
        reference.quality_probes,
        reference.scores,
        reference.figure,
    )
    assert [answer.sequence for answer in again.suite] == [answer.sequence for answer in reference.suite]
    path.write_text(path.read_text().replace("Madrid", "Lisbon"))
    with pytest.raises(IntegrityBroken, match=digest):
        Reference.load(path, digest)
    path.write_text("{}")
    with pytest.raises(IntegrityBroken, match="something else"):
        Reference.load(path)


def test_a_trial_fills_every_figure(rig: Rig, reference: Reference) -> None:
    scorer = Scorer(rig.model, rig.weights, reference)
    first = [with_probes(0), with_probes(1, locality=(), rephrases=(), portability=(), target_true=None)]
    candidate(rig, scorer, first, [])
    measured = candidate(rig, scorer, [with_probes(2)], first)
    [score] = measured.edits
    assert score.edit_success
    assert score.token_fraction == 1.0
    assert 0.4 < score.prob_new < 1
    assert score.prob_true is not None
    assert score.prob_true < 0.6
    assert (len(score.rephrases), len(score.locality), len(score.locality_base), len(score.portability)) == (2, 2, 2, 1)
    assert score.locality_kl is not None
    assert score.free_success is not None
    assert score.generated.startswith("Lyon")
    assert score.chat_success is None
    assert measured.candidate.num_retained == 2
    assert measured.candidate.retention == measured.parent.retention == 1.0
    assert measured.candidate.num_suite == 3
    assert measured.base.suite_unchanged == 1.0
    assert measured.candidate.perplexity != measured.parent.perplexity != measured.base.perplexity
    assert measured.kl_from_parent is not None
    assert measured.change_norm is not None
    assert 0 < measured.change_norm < 1
    assert len(measured.probe_set_digest) == 64


def test_rephrases_that_are_edit_rows_are_measured_as_such_and_never_as_generalization(
    rig: Rig, reference: Reference
) -> None:
    texts = ("Japan is", "what is Japan", "a king of Japan", "the queen", "who is king of Japan and")
    edit = with_probes(0, subject="Japan", rephrases=texts)
    for num_rows, in_classes, in_rows in ((0, (1, 3, 1), 0), (2, (1, 1, 1), 2), (4, (0, 1, 0), 4)):
        asked = questions_of(edit, rephrase_rows=num_rows)
        assert set(asked.rephrases).isdisjoint(asked.row_rephrases)
        make_again(rig)
        scorer = Scorer(rig.model, rig.weights, reference, rephrase_rows=num_rows)
        [score] = candidate(rig, scorer, [edit], []).edits
        assert (len(score.same_context), len(score.other_context), len(score.unnamed)) == in_classes
        assert len(score.rephrases) == sum(in_classes[:2])
        assert len(score.row_rephrases) == in_rows


def test_so_many_edits_of_a_batch_are_asked_in_a_chat_and_only_those_with_a_question(
    rig: Rig, reference: Reference
) -> None:
    rig.model.tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }} {% endfor %}"
    asked = {"question": "who is king"}
    edits = [with_probes(0), with_probes(1, **asked), with_probes(2, **asked), with_probes(3, **asked)]
    measured = candidate(rig, Scorer(rig.model, rig.weights, reference, num_chat=2), edits, [])
    assert [score.chat_success is not None for score in measured.edits] == [False, True, True, False]
    assert [bool(score.reply) for score in measured.edits] == [False, True, True, False]


def test_the_parent_of_a_kept_candidate_is_the_candidate(rig: Rig, reference: Reference) -> None:
    scorer = Scorer(rig.model, rig.weights, reference)
    first = candidate(rig, scorer, [with_probes(0)], [])
    kept = candidate(rig, scorer, [with_probes(1)], [with_probes(0)])
    assert kept.parent.perplexity == first.candidate.perplexity
    assert kept.parent.suite_kl == first.candidate.suite_kl
    again = Scorer(rig.model, rig.weights, reference)
    again.observe_parent([with_probes(2)], [])
    afresh = candidate(rig, again, [with_probes(2)], [])
    assert afresh.parent.suite_unchanged == kept.candidate.suite_unchanged
    assert afresh.parent.perplexity == pytest.approx(kept.candidate.perplexity or 0.0)


def test_a_dropped_candidate_leaves_the_parent_as_it_was(rig: Rig, reference: Reference) -> None:
    scorer = Scorer(rig.model, rig.weights, reference)
    dropped = candidate(rig, scorer, [with_probes(0), with_probes(1)], [], keep=False)
    kept = candidate(rig, scorer, [with_probes(0)], [])
    assert dropped.parent == kept.parent
    assert kept.parent.suite_unchanged == 1.0
    alone = candidate(make_again(rig), Scorer(rig.model, rig.weights, reference), [with_probes(0)], [])
    assert alone.edits[0].locality == kept.edits[0].locality


def make_again(rig: Rig) -> Rig:
    """The same rig at its base."""
    rig.weights.set_accumulators({})
    if rig.ledger.batches:
        rig.ledger.commit(rig.ledger.batches[0].only(()), rig.ledger.edit_ids)
    return rig


def test_older_edits_that_came_as_chats_are_retained_as_chats(rig: Rig, reference: Reference) -> None:
    rig.model.tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }} {% endfor %}was "
    turns = (ChatTurn(role="user", content="who is king of Japan"),)
    [said] = rig.model.generate(["who is king of Japan"], chat=True, max_new_tokens=1)
    [other] = rig.model.generate(["who is king of Japan"], max_new_tokens=1)
    assert said != other
    for target, expected in ((said.strip(), 1.0), (other.strip(), 0.0)):
        older = with_probes(0, messages=turns, target_new=target)
        assert older.request.is_chat
        scorer = Scorer(rig.model, rig.weights, reference)
        scorer.observe_parent([], [older])
        assert candidate(make_again(rig), scorer, [with_probes(1)], [older]).parent.retention == expected


def test_suite_probes_of_edited_facts_are_left_out_and_counted(rig: Rig, reference: Reference) -> None:
    scorer = Scorer(rig.model, rig.weights, reference)
    by_fact = with_probes(0, subject="SPAIN", relation="Capital")
    by_prompt = with_probes(1, prompt="Berlin is  a city in")
    measured = candidate(rig, scorer, [by_fact, by_prompt], [])
    assert measured.candidate.num_suite == 1
    assert measured.candidate.num_suite_left_out == 2


def test_a_removal_is_measured_without_edits(rig: Rig, reference: Reference) -> None:
    scorer = Scorer(rig.model, rig.weights, reference)
    edits = edits_of(0, 1)
    candidate(rig, scorer, edits, [])
    result = RecursiveEditor(SETTINGS).edit(
        EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, removed_ids=[edits[0].edit_id])
    )
    scorer.observe_parent([], edits[1:])
    rig.weights.apply(result.delta)
    measured = scorer.measure(added=[], retained=edits[1:], gone_keys=(), delta=result.delta)
    assert measured.edits == ()
    assert measured.candidate.retention is not None


def test_with_the_shift_taken_off_the_model_answers_as_the_base(rig: Rig) -> None:
    batch = rig.model.encode(FACTS)
    base = rig.model.target_logits(batch)
    assert negative_shift(rig.model, rig.weights) == {}
    result = RecursiveEditor(SETTINGS).edit(
        EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=edits_of(0, 1))
    )
    rig.weights.apply(result.delta)
    assert not torch.allclose(rig.model.target_logits(batch), base, atol=1e-2)
    with side_branch(rig.model.module, negative_shift(rig.model, rig.weights)):
        torch.testing.assert_close(rig.model.target_logits(batch), base, rtol=1e-4, atol=1e-4)


def test_a_known_prefix_gives_the_same_scores_and_is_forgotten_in_time(rig: Rig) -> None:
    sequences = [encode_pair(rig.model.tokenizer, line, "king") for line in prior_lines()]
    plain = scores(rig.model, prepare(rig.model, sequences))
    cache = PrefixCache(rig.model, max_bytes=20_000)
    for chosen in (sequences[:10], sequences[5:20], sequences):
        found = scores(rig.model, cache.prepare(chosen))
        expected = [plain[sequences.index(sequence)] for sequence in chosen]
        assert [score.hits for score in found] == [score.hits for score in expected]
        assert [score.mean_log_probability for score in found] == pytest.approx(
            [score.mean_log_probability for score in expected], abs=1e-5
        )
    assert cache.num_bytes <= 20_000


def test_generation_is_that_of_plain_argmax_one_prompt_at_a_time(rig: Rig) -> None:
    prompts = [rig.model.tokenizer(text)["input_ids"] for text in ("the capital of", "who", "Rome is located in Italy")]
    found = rig.model.greedy(prompts, max_new_tokens=6)
    for prompt, answer in zip(prompts, found, strict=True):
        ids = list(prompt)
        for _ in range(6):
            token = int(rig.model.module(torch.tensor([ids])).logits[0, -1].argmax())
            if token in rig.model.stop_ids:
                break
            ids.append(token)
        assert ids[len(prompt) :] == answer


def test_a_shared_beginning_changes_no_answer(rig: Rig) -> None:
    start = "the capital city of the country of Japan is located in"
    texts = [f"{start} {end}" for end in ("Tokyo", "Rome and", "a city of")]
    prompts = [rig.model.tokenizer(text)["input_ids"] for text in texts]
    alone = [rig.model.greedy([prompt], max_new_tokens=5)[0] for prompt in prompts]
    assert rig.model.greedy(prompts, max_new_tokens=5) == alone


def test_gates_and_evaluation_say_the_same_of_an_edit(rig: Rig, reference: Reference) -> None:
    edits = [with_probes(0), with_probes(1, target_true=None), with_probes(2)]
    probes = EditProbes(rig.model, edits, TEXT)
    measured = candidate(rig, Scorer(rig.model, rig.weights, reference), edits, [])
    ids = {edit.edit_id for edit in edits}
    for score, found in zip(measured.edits, probes.ask(edits, preferring=ids, free=ids), strict=True):
        own, free = found.own, found.own.free
        assert free is not None
        assert (score.edit_success, score.token_fraction) == (own.score.is_hit, own.score.token_fraction)
        assert (score.generated, score.free_success) == (free.text, free.is_success)
        assert score.prob_new == pytest.approx(own.score.probability, rel=1e-5)
        assert score.prob_true == (own.true and pytest.approx(own.true.probability, rel=1e-5))
        assert score.rephrases == tuple(asked.score.is_hit for asked in found.rephrases)
        assert score.portability == tuple(asked.score.is_hit for asked in found.portability)
        changes = [neighbour.from_base for neighbour in found.neighbours]
        assert score.locality == score.locality_base == tuple(change.is_unchanged for change in changes)
        assert score.locality_kl == pytest.approx(sum(change.kl for change in changes) / len(changes), rel=1e-4)


def test_people_see_what_parent_and_candidate_say_in_words(rig: Rig, reference: Reference) -> None:
    scorer = Scorer(rig.model, rig.weights, reference)
    added = [with_probes(0, question="what is it", messages=())]
    stem, wording = added[0].request.prompt, added[0].request.rephrases[0]

    def says(prompt: str) -> str:
        [tokens] = rig.model.greedy([rig.model.encode_prompt(prompt)], max_new_tokens=SHOWN_TOKENS)
        return rig.model.decode(tokens).strip()

    before = [says(stem), says(wording)]
    probability = score_pairs(rig.model, [(stem, added[0].request.target_new)])[0].probability
    measured = candidate(rig, scorer, added, [])
    [score] = measured.edits
    assert [score.generated_before, score.wording_before] == before
    assert (score.wording, score.wording_after) == (wording, says(wording))
    assert score.prob_before == pytest.approx(probability, rel=1e-4)
    assert score.prob_new > probability
    moved = [probe for probe, same in zip(added[0].request.locality, score.locality, strict=True) if not same]
    assert [(one.prompt, one.now) for one in score.moved] == [(probe.prompt, says(probe.prompt)) for probe in moved]
    assert len(measured.moved) <= len(SUITE)
    assert all(one.now == says(one.prompt) for one in measured.moved)
    assert Measurements.from_stored(json.loads(json.dumps(asdict(measured)))) == measured


def test_what_was_made_again_is_told_of_the_edits_about_its_subject(rig: Rig, reference: Reference) -> None:
    scorer = Scorer(rig.model, rig.weights, reference)
    first = replace(with_probes(0, subject="Paris"), edit_id="first")
    candidate(rig, scorer, [first], [])
    added = [with_probes(2, subject="Paris"), with_probes(1, subject="Spain")]
    measured = candidate(rig, scorer, added, [first], remade=[first])
    assert measured.parent.retention == 1.0
    about, other = measured.edits
    [fact] = about.same_subject
    assert (fact.edit_id, fact.prompt) == ("first", first.request.prompt)
    assert float(fact.holds) == measured.candidate.retention
    assert other.same_subject == ()
    assert Measurements.from_stored(json.loads(json.dumps(asdict(measured)))) == measured


def test_of_a_large_batch_only_the_first_edits_are_put_into_words(
    rig: Rig, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("editors.measure.scorer.NUM_SHOWN", 2)
    added = edits_of(*range(len(FACTS)))
    measured = candidate(rig, Scorer(rig.model, rig.weights, reference), added, [])
    assert [score.generated_before is not None for score in measured.edits] == [True, True, False, False, False]
    assert all(score.prob_before is not None for score in measured.edits)
