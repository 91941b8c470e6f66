"""`editors.prepare` and `editors.evaluation` from end to end on a tiny model: no service, real files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from editors.data.folded_facts import write_folded
from editors.evaluation.__main__ import main as evaluate
from editors.evaluation.arguments import parser
from editors.evaluation.methods import methods_of
from editors.evaluation.stream import Stream
from editors.measure.reference import Reference
from editors.mend.checkpoint import CardStage, EditorCard, TrainedEditor
from editors.mend.transform import MendTransform
from editors.methods.base import EditJob, EditResult
from editors.methods.recursive import RecursiveEditor
from editors.methods.select import editor_for, resolved
from editors.models.digest import base_digest
from editors.models.families import CausalModel
from editors.models.tokens import Encoded
from editors.prepare.__main__ import main as prepare
from editors.solve.prior import Prior, measure_prior
from editors.weights.loading import load_base
from pipeline.domain.edits import Edit
from pipeline.domain.errors import EditorFailed, Misconfigured
from pipeline.domain.formats.canonical import sha256_file
from pipeline.domain.rank_api import EditorSettings
from tests.support.factories import make_edit
from tests.support.ledger_parts import FACTS, prior_lines
from tests.support.tiny_models import TEXT, save_tiny_llama, tiny_tokenizer


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model and everything that is asked of it."""
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path / "cache"))
    save_tiny_llama(tmp_path / "model", hidden=32, mlp=32)
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "prior.txt").write_text("\n".join(prior_lines()))
    (tmp_path / "suite.jsonl").write_text('{"prompt": "Berlin is a city in", "target": "Germany"}\n')
    edits = [
        {"prompt": prompt, "target_new": target, "rephrases": ["what is"], "locality": [{"prompt": f"where is {i}"}]}
        for i, (prompt, target) in enumerate(FACTS)
    ]
    edits.append({"prompt": FACTS[0][0], "target_new": "Rome"})
    (tmp_path / "edits.jsonl").write_text("\n".join(json.dumps(edit) for edit in edits))
    return tmp_path


def prepare_arguments(files: Path, out: str) -> list[str]:
    names = {"--model": "model", "--suite": "suite.jsonl", "--text": "text.txt", "--prior-text": "prior.txt"}
    return [part for flag, name in names.items() for part in (flag, str(files / name))] + ["--out", str(files / out)]


def evaluate_arguments(files: Path, **changes: str) -> list[str]:
    names = {"data": "edits.jsonl", "model": "model", "text": "text.txt", "prior-text": "prior.txt", "json": "out.json"}
    given = {flag: str(files / name) for flag, name in names.items()}
    given |= {"edits": "6", "batch": "2", "step": "1.0", "rest": "0.6", "num-passes": "40"}
    given |= {"prior-strength": "0.1", "ridge": "1e-3", "damping": "0.02"}
    given |= {flag.replace("_", "-"): value for flag, value in changes.items()}
    return [part for flag, value in given.items() for part in (f"--{flag}", value)]


def test_a_base_is_measured_once_for_the_same_inputs(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prepare(prepare_arguments(files, "one")) == 0
    lineage = json.loads((files / "one" / "lineage.json").read_text())
    prior, baseline = lineage["prior"], lineage["baseline"]
    assert set(Prior.load(files / "one" / "prior.safetensors", prior["digest"]).moments) == set(lineage["inner_params"])
    assert len(Reference.load(files / "one" / "baseline.json", baseline["digest"]).suite) == 1

    def fail(*_: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("editors.prepare.__main__._measure", fail)
    assert prepare(prepare_arguments(files, "two")) == 0
    for name in ("lineage.json", "prior.safetensors", "baseline.json"):
        assert sha256_file(files / "one" / name) == sha256_file(files / "two" / name)
    (files / "suite.jsonl").write_text('{"prompt": "Rome is a city in"}\n')
    with pytest.raises(AssertionError, match="measured again"):
        prepare(prepare_arguments(files, "three"))


def test_a_suite_asks_for_what_was_folded_into_the_base(files: Path) -> None:
    assert prepare(prepare_arguments(files, "one")) == 0
    write_folded(files / "model", files / "model", [make_edit("Chad", prompt="Chad is a city in", target_new="Rome")])
    assert prepare(prepare_arguments(files, "two")) == 0
    asked = [
        [answer.probe.probe.prompt for answer in Reference.load(files / out / "baseline.json").suite]
        for out in ("one", "two")
    ]
    assert asked[1] == [*asked[0], "Chad is a city in"]


def test_figures_and_a_picture_are_left_in_a_folder(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = evaluate_arguments(files, out=str(files / "measured"), solver="recursive,ft", edits="4")
    assert evaluate(arguments) == 0
    figures = json.loads((files / "measured" / "figures.json").read_text())
    assert figures == json.loads((files / "out.json").read_text())
    assert set(figures["solvers"]["ft"]["editing"]) >= {"passes", "jitter_batches", "delta_share_of_model"}
    assert (files / "measured" / "curves.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().err
    assert "recursive: 2/4 edited" in shown
    assert "retention of the first 10 %" in shown


def test_a_run_that_is_cut_off_leaves_what_it_measured(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit, batches = RecursiveEditor.edit, []

    def is_killed_at_third(editor: RecursiveEditor, job: EditJob) -> EditResult:
        batches.append(job)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return edit(editor, job)

    monkeypatch.setattr(RecursiveEditor, "edit", is_killed_at_third)
    assert evaluate(evaluate_arguments(files, out=str(files / "measured"), solver="sum,recursive")) == 130
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == f"stopped; what was measured until then is in {files / 'measured/figures.json'}"
    assert "Traceback" not in said
    figures = json.loads((files / "measured" / "figures.json").read_text())
    assert figures["is_complete"] is False
    assert figures["solvers"]["sum"]["edit_success"] == figures["solvers"]["sum"]["checkpoints"][-1]["edit_success"]
    assert [point["edits"] for point in figures["solvers"]["recursive"]["checkpoints"]] == [2, 4]
    monkeypatch.undo()
    assert evaluate(evaluate_arguments(files, out=str(files / "measured"))) == 0
    assert json.loads((files / "measured" / "figures.json").read_text())["is_complete"] is True


def fails(editor: object, job: EditJob) -> EditResult:
    raise Misconfigured("expected a method that can edit, got none")


@pytest.mark.parametrize("protocol", ["stream", "single"])
def test_what_was_measured_before_a_method_failed_is_printed_or_lies_beside_complete_figures(
    protocol: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*evaluate_arguments(files, edits="2", protocol=protocol), "--out", str(files / "measured")]
    assert evaluate(words) == 0
    complete = {path: path.read_bytes() for path in (files / "out.json", files / "measured" / "figures.json")}
    monkeypatch.setattr(RecursiveEditor, "edit", fails)
    failed = [*words, "--solver", "sum,recursive"]
    for json_file in ([], ["--json", "-"]):
        capsys.readouterr()
        assert evaluate([*failed, *json_file]) == 1
        shown = capsys.readouterr()
        part = files / "measured" / "figures.part.json"
        assert shown.err.splitlines()[-1] == (
            f"expected a method that can edit, got none; what was measured until then is in {part}"
        )
        for text in (part.read_text(), shown.out if json_file else (files / "out.part.json").read_text()):
            figures = json.loads(text)
            assert (figures["is_complete"], list(figures["solvers"])) == (False, ["sum"])
            assert "edit_success" in figures["solvers"]["sum"]
        assert {path: path.read_bytes() for path in complete} == complete
    monkeypatch.undo()
    assert evaluate(words) == 0
    assert not list(files.rglob("*.part.json"))


@pytest.mark.parametrize("protocol", ["stream", "single"])
def test_an_evaluation_that_made_no_edit_has_failed(
    protocol: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_numbers(editor: RecursiveEditor, job: EditJob) -> EditResult:
        raise EditorFailed("expected finite factors, got NaN")

    monkeypatch.setattr(RecursiveEditor, "edit", without_numbers)
    assert evaluate(evaluate_arguments(files, edits="2", protocol=protocol)) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "expected a batch that recursive can edit, got none: expected finite factors, got NaN"
    assert json.loads((files / "out.json").read_text())["is_complete"] is True


def test_a_correction_takes_out_what_holds_although_another_failed_between(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_base(files / "model")
    settings = EditorSettings(prior_strength=0.1, num_passes=3, inner_params=model.inner_param_names)
    edit = RecursiveEditor.edit

    def fails_for_second(editor: RecursiveEditor, job: EditJob) -> EditResult:
        if job.added[0].request.target_new == "Rome":
            raise EditorFailed("expected finite factors, got NaN")
        return edit(editor, job)

    monkeypatch.setattr(RecursiveEditor, "edit", fails_for_second)
    stream = Stream(model, RecursiveEditor(settings), measure_prior(model, prior_lines()), settings)
    edits = [make_edit(target, prompt=FACTS[0][0], target_new=target) for target in ("Kyoto", "Rome", "Milan")]
    for edit_of_fact in edits:
        stream.take([edit_of_fact])
        assert list(stream.active) == [edit_of_fact.edit_id]
    assert len(stream.cost.failures) == 1
    assert stream.ledger.edit_ids == (edits[-1].edit_id,)


def test_a_stream_makes_facts_again_with_another_about_their_subject(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_base(files / "model")
    names = model.inner_param_names
    settings = EditorSettings(
        prior_strength=0.1, num_passes=1, inner_params=names, subject_params=names[:1], batch_size=2
    )
    edit, made = RecursiveEditor.edit, []

    def seen(editor: RecursiveEditor, job: EditJob) -> EditResult:
        made.append(([one.request.request_id for one in job.added], len(job.removed_ids)))
        return edit(editor, job)

    monkeypatch.setattr(RecursiveEditor, "edit", seen)
    stream = Stream(model, RecursiveEditor(settings), measure_prior(model, prior_lines()), settings)
    facts = [("a", "Japan"), ("b", "japan"), ("c", "Italy"), ("d", "JAPAN"), ("e", "Japan")]
    for name, subject in facts:
        stream.take([make_edit(name, prompt=f"the {name} of {subject} is", target_new="Rome", subject=subject)])
    assert made == [(["a"], 0), (["a", "b"], 1), (["c"], 0), (["a", "b", "d"], 2), (["b", "d", "e"], 2)]
    assert sorted(stream.ledger.edit_ids) == sorted(stream.active)


def test_solvers_without_a_ledger_leave_no_rows_in_it(files: Path) -> None:
    model = load_base(files / "model")
    settings = EditorSettings(solver="sum", num_passes=3, inner_params=model.inner_param_names)
    stream = Stream(model, editor_for(settings), measure_prior(model, prior_lines()), settings)
    stream.take([make_edit("first", prompt=FACTS[0][0], target_new="Kyoto")])
    assert stream.weights.shift(model.inner_param_names[0]).any()
    assert stream.ledger.edit_ids == ()


def test_a_batch_whose_numbers_cannot_be_used_is_counted_and_its_edits_do_not_hold(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit, batches = RecursiveEditor.edit, []

    def fails_second(editor: RecursiveEditor, job: EditJob) -> EditResult:
        batches.append(job)
        if len(batches) == 2:
            raise EditorFailed("expected finite factors, got NaN")
        return edit(editor, job)

    monkeypatch.setattr(RecursiveEditor, "edit", fails_second)
    assert evaluate(evaluate_arguments(files)) == 0
    found = json.loads((files / "out.json").read_text())["solvers"]["recursive"]
    assert (found["editing"]["failed_batches"], found["editing"]["first_failure"]) == (
        1,
        "expected finite factors, got NaN",
    )
    assert found["active"] == 5
    assert found["edit_success"] < 1.0


def save_editor(files: Path, solver: str = "sum", **changes: Any) -> None:
    """A MEND transform for one weight that was trained for no step."""
    name, width = "model.layers.1.mlp.down_proj.weight", 32
    transform = MendTransform({name: (width, width)}, rank=2)
    draw = torch.Generator().manual_seed(0)
    transform.observe(name, *torch.randn(2, 9, width, generator=draw))
    card = EditorCard(
        base_digest=changes.get("base_digest", base_digest(files / "model")),
        task="causal",
        solver=solver,
        stages=(CardStage(inner_params=(name,), key_tokens="all" if solver == "sum" else "answer"),),
        shapes=((name, width, width),),
        rank=2,
        statistics="shape",
        stop_probability=0.9,
        settings={},
        training={},
        data=(),
        metrics={},
        command="corrigenda train",
        num_steps=0,
        versions={},
        licence="none",
    )
    TrainedEditor(card=card, transform=transform).save(files / "editor")


def test_a_trained_editor_is_used_as_its_card_says(files: Path) -> None:
    save_editor(files)
    assert evaluate(evaluate_arguments(files, editor=str(files / "editor"), edits="2")) == 0
    found = json.loads((files / "out.json").read_text())["solvers"]
    assert list(found) == ["sum"]
    assert found["sum"]["settings"]["inner_params"] == ["model.layers.1.mlp.down_proj.weight"]
    assert len(found["sum"]["settings"]["transform"]) == 64
    named = evaluate_arguments(files, editor=f"sum={files / 'editor'}", solver="recursive,sum", edits="2")
    assert evaluate(named) == 0
    found = json.loads((files / "out.json").read_text())["solvers"]
    assert found["recursive"]["settings"]["transform"] == "gradient"
    chosen = resolved(EditorSettings(), load_base(files / "model"))
    assert tuple(found["recursive"]["settings"]["inner_params"]) == chosen.inner_params
    assert tuple(found["recursive"]["settings"]["subject_params"]) == chosen.subject_params != ()
    assert len(found["sum"]["settings"]["inner_params"]) == 1


def test_an_editor_trained_with_the_solve_serves_every_solver_that_asks_in_passes(files: Path) -> None:
    save_editor(files, solver="recursive")
    given = evaluate_arguments(files, editor=str(files / "editor"), solver="recursive,least_squares,sum,ft", edits="2")
    assert evaluate(given) == 0
    found = json.loads((files / "out.json").read_text())["solvers"]
    transforms = {solver: figures["settings"]["transform"] for solver, figures in found.items()}
    assert transforms["ft"] == "gradient"
    assert len({transforms[solver] for solver in ("recursive", "least_squares", "sum")} - {"gradient"}) == 1


def test_a_rest_that_is_given_is_the_transforms_too(files: Path) -> None:
    save_editor(files, solver="recursive")
    for changes, rest in (({}, 0.9), ({"rest": "0.6"}, 0.6)):
        words = {"data": "edits.jsonl", "edits": "2", "model": str(files / "model"), "editor": str(files / "editor")}
        given = parser().parse_args([part for flag, word in (words | changes).items() for part in (f"--{flag}", word)])
        trained = methods_of(given)["recursive"].trained
        assert trained is not None
        assert trained.transform.stop_probability == rest


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"solver": "recursive"}, "serve, got recursive"),
        ({"solver": "recursive", "editor": "recursive={}"}, "as that of recursive"),
        ({"solver": "recursive", "editor": "sum={}"}, "as that of sum"),
        ({"inner_param": "model.layers.0.mlp.down_proj.weight"}, "inner_params"),
    ],
)
def test_an_editor_that_nobody_could_use_as_it_was_trained_is_refused(
    changes: dict[str, str], words: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_editor(files)
    editor = changes.get("editor", "{}").format(files / "editor")
    assert evaluate(evaluate_arguments(files, **(changes | {"editor": editor}))) == 1
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_two_editors_for_all_solvers_are_one_too_many(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_editor(files)
    given = evaluate_arguments(files, editor=str(files / "editor"))
    assert evaluate([*given, "--editor", str(files / "editor")]) == 1
    assert "SOLVER=FOLDER" in capsys.readouterr().err


def test_a_trained_editor_of_another_base_is_refused(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_editor(files, base_digest="0" * 64)
    assert evaluate(evaluate_arguments(files, editor=str(files / "editor"))) == 1
    assert "0000" in capsys.readouterr().err.strip().splitlines()[-1]


def test_two_measurements_of_a_base_have_the_same_bytes(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prepare(prepare_arguments(files, "one")) == 0
    monkeypatch.setenv("CORRIGENDA_CACHE", str(files / "other"))
    assert prepare(prepare_arguments(files, "two")) == 0
    for name in ("lineage.json", "prior.safetensors", "baseline.json"):
        assert sha256_file(files / "one" / name) == sha256_file(files / "two" / name)


@pytest.mark.parametrize("missing", ["model", "suite.jsonl", "prior.txt"])
def test_what_is_missing_is_one_sentence(missing: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / missing).rename(files / "elsewhere")
    assert prepare(prepare_arguments(files, "one")) == 1
    [line] = capsys.readouterr().err.strip().splitlines()
    assert missing in line


def test_known_answers_need_no_torch(files: Path) -> None:
    assert prepare(prepare_arguments(files, "one")) == 0
    code = "import sys; from editors.prepare.__main__ import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    arguments = prepare_arguments(files, "two")
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_stream_is_evaluated_and_a_later_correction_replaces_an_earlier(files: Path) -> None:
    assert evaluate(evaluate_arguments(files, checkpoint_every="4")) == 0
    found = json.loads((files / "out.json").read_text())["solvers"]["recursive"]
    assert [point["edits"] for point in found["checkpoints"]] == [4, 6]
    assert found["active"] == 5
    assert found["edit_success"] == 1.0
    assert found["greedy"]["edit_success"] > 0  # a random model rarely stops after its answer
    asked = {"rephrases": "generalization", "neighbours": "locality_unchanged"}
    for name, figure in asked.items():  # the edit that corrects an earlier one brings neither
        assert found["measured"][name] == found["active"] - 1
        assert found[figure] * (found["active"] - 1) == pytest.approx(round(found[figure] * (found["active"] - 1)))
    assert found["retention_first_batch"] == 1.0, "the one of the first batch that is still active"
    assert found["retention_first_tenth"] is None  # it was the one edit that has been replaced
    assert found["locality_kl"] > 0
    assert found["drawdown"] != 0
    assert found["cost"]["seconds_per_edit"] > 0
    assert found["settings"]["solver"] == "recursive"


def test_single_edits_start_from_the_unedited_base_and_leave_it_so(files: Path) -> None:
    assert evaluate(evaluate_arguments(files, protocol="single", edits="5")) == 0
    together = json.loads((files / "out.json").read_text())["solvers"]["recursive"]
    assert (together["edits"], together["measured"]["edits"], together["measured"]["drawdown"]) == (5, 5, 5)
    rows = (files / "edits.jsonl").read_text().splitlines()
    alone = []
    for row in rows[:5]:
        (files / "one.jsonl").write_text(row)
        assert evaluate(evaluate_arguments(files, data=str(files / "one.jsonl"), edits="1")) == 0
        alone.append(json.loads((files / "out.json").read_text())["solvers"]["recursive"])
    for name in ("edit_success", "locality_kl", "drawdown", "token_fraction"):
        assert together[name] == pytest.approx(fmean(figures[name] for figures in alone), rel=1e-4)


@pytest.mark.parametrize("protocol", ["stream", "single"])
def test_the_same_command_gives_the_same_figures(protocol: str, files: Path) -> None:
    found = []
    for _ in range(2):
        arguments = evaluate_arguments(files, protocol=protocol, sample="3", free_sample="2", solver="recursive,sum")
        assert evaluate(arguments) == 0
        found.append(without_cost(json.loads((files / "out.json").read_text())))
    assert found[0] == found[1]
    assert list(found[0]["solvers"]) == ["recursive", "sum"]


def without_cost(figures: Any) -> Any:
    """Figures without what differs between two runs of the same command."""
    if isinstance(figures, dict):
        return {key: without_cost(value) for key, value in figures.items() if key != "cost"}
    return [without_cost(item) for item in figures] if isinstance(figures, list) else figures


def test_a_second_solver_starts_from_the_unedited_base(files: Path) -> None:
    assert evaluate(evaluate_arguments(files, solver="sum,least_squares")) == 0
    both = json.loads((files / "out.json").read_text())["solvers"]
    assert evaluate(evaluate_arguments(files, solver="least_squares")) == 0
    alone = json.loads((files / "out.json").read_text())["solvers"]
    assert both["least_squares"]["locality_kl"] == pytest.approx(alone["least_squares"]["locality_kl"], rel=1e-4)


def test_questions_that_the_editor_does_not_see_are_asked_all_the_same(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }} {% endfor %}"
    tokenizer.save_pretrained(files / "model")
    corrections = [
        {
            "prompt": prompt,
            "subject": prompt.split()[-1],
            "target_new": target,
            "paraphrases": ["the king of Japan", f"{prompt} a", "what is"],
            "far": ["where was the queen"],
            "question": f"what is {i}",
            "chat_stem": "the answer is",
        }
        for i, (prompt, target) in enumerate(FACTS[:2])
    ]
    (files / "edits.jsonl").write_text("\n".join(json.dumps(correction) for correction in corrections))
    edit, seen = RecursiveEditor.edit, []

    def noted(editor: RecursiveEditor, job: EditJob) -> EditResult:
        seen.extend(added.request for added in job.added)
        return edit(editor, job)

    monkeypatch.setattr(RecursiveEditor, "edit", noted)
    arguments = evaluate_arguments(files, edits="2", solver="recursive", rephrase_rows="0")
    for flags, is_seen in (([], True), (["--unseen-questions"], False)):
        seen.clear()
        assert evaluate([*arguments, *flags]) == 0
        assert [(request.question is not None, request.answer is not None) for request in seen] == [(is_seen,) * 2] * 2
        document = json.loads((files / "out.json").read_text())
        found = document["solvers"]["recursive"]
        assert document["inputs"]["unseen_questions"] is not is_seen
        assert found["num_chat_success"] == 2
        assert [(said["edit_id"], said["question"]) for said in found["replies"]] == [
            ("000001", "what is 0"),
            ("000002", "what is 1"),
        ]
        assert found["chat_success"] == fmean(said["is_right"] for said in found["replies"])
        base = document["base"]
        assert [said["question"] for said in base["replies"]] == [said["question"] for said in found["replies"]]
        assert base["chat_success"] == fmean(said["is_right"] for said in base["replies"])
        assert (base["edit_success"], base["asked"], base["num_generalization_other_context"]) == (0.0, 2, 1)
        classes = ("same_context", "other_context", "unnamed")
        assert [found[f"num_generalization_{name}"] for name in classes] == [2, 1, 5]
        assert found["measured"]["rephrases"] == 3


@pytest.mark.parametrize("has_template", [True, False])
def test_edits_that_came_only_as_chats_are_made_by_every_solver_and_asked_as_chats(
    files: Path, has_template: bool
) -> None:
    tokenizer = tiny_tokenizer()
    if has_template:
        tokenizer.chat_template = "{% for turn in messages %}<s> {{ turn.content }} </s> {% endfor %}<s> "
        tokenizer.save_pretrained(files / "model")
    chats = [
        {"messages": [{"role": "system", "content": "language"}, {"role": "user", "content": prompt}], "answer": target}
        for prompt, target in FACTS[:2]
    ]
    (files / "edits.jsonl").write_text("\n".join(json.dumps(chat) for chat in chats))
    assert evaluate(evaluate_arguments(files, edits="2", solver="recursive,ft")) == 0
    solvers = json.loads((files / "out.json").read_text())["solvers"]
    assert solvers["recursive"]["edit_success"] == 1.0
    assert {found["num_chat_success"] for found in solvers.values()} == {2 if has_template else 0}


def test_on_the_way_a_sample_is_measured_and_at_the_end_every_edit(files: Path) -> None:
    assert evaluate(evaluate_arguments(files, sample="3", free_sample="4")) == 0
    found = json.loads((files / "out.json").read_text())["solvers"]["recursive"]["checkpoints"]
    assert [point["edits"] for point in found] == [2, 4, 6]
    assert [point["measured"]["edits"] for point in found] == [2, 3, 5]
    assert [point["measured"]["greedy"] for point in found] == [1, 1, 3]


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_the_measured_rephrase_is_never_an_edit_row(rows: int, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit = {
        "prompt": FACTS[0][0],
        "target_new": FACTS[0][1],
        "rephrases": ["Rome is", "Paris is", "Lyon is", "Rome IS"],
    }
    (files / "edits.jsonl").write_text(json.dumps(edit))
    seen: list[str] = []
    make = Stream._make

    def watched(stream: Stream, added: Sequence[Edit]) -> None:
        with monkeypatch.context() as patch:
            encode = CausalModel.encode_pair

            def note(model: CausalModel, prompt: str, *arguments: Any, **keywords: Any) -> Encoded:
                seen.append(prompt)
                return encode(model, prompt, *arguments, **keywords)

            patch.setattr(CausalModel, "encode_pair", note)
            make(stream, added)

    monkeypatch.setattr(Stream, "_make", watched)
    arguments = evaluate_arguments(files, edits="1", rephrase_rows=str(rows), rephrases="9", solver="recursive,sum,ft")
    assert evaluate(arguments) == 0
    assert {text for text in seen if text in (edit["prompt"], *edit["rephrases"])} == {
        FACTS[0][0],
        *["Paris is", "Lyon is"][:rows],
    }
    unseen = ["Rome is", *["Paris is", "Lyon is"][rows:]]
    assert not any(text in frame for frame in seen for text in unseen)
    found = json.loads((files / "out.json").read_text())
    assert found["inputs"]["rephrase_rows"] == rows
    assert {figures["measured"]["rephrases"] for figures in found["solvers"].values()} == {3 - rows}


@pytest.mark.parametrize("solver", ["least_squares", "sum", "ft"])
def test_other_solvers_are_evaluated_too(solver: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(evaluate_arguments(files, solver=solver, json="-", edits="2")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["solvers"][solver]["settings"]["solver"] == solver
    assert found["inputs"]["edits"] == 2


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"data": "/nowhere.jsonl"}, "/nowhere.jsonl"),
        ({"model": "/nowhere"}, "/nowhere"),
        ({"solver": "magic"}, "magic"),
        ({"inner-param": "model.layers.77.mlp.down_proj.weight"}, "layers.77"),
        ({"json": "/nowhere/out.json", "edits": "1"}, "/nowhere/out.json"),
    ],
)
def test_a_bad_input_is_one_sentence_and_a_failure(
    changes: dict[str, str], complaint: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(evaluate_arguments(files, **changes)) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert complaint in error
