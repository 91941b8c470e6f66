"""A lineage's trained editor: which one is chosen, and what is refused before anything is measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from editors.mend.checkpoint import TENSORS, CardStage, TrainedEditor
from editors.mend.shipped import CARD, PRETRAINED, shipped_editor
from editors.methods.select import lineage_settings
from editors.models.digest import base_digest
from editors.prepare import __main__ as preparing
from editors.prepare.__main__ import Inputs, prepare
from pipeline.domain.errors import IntegrityBroken, Misconfigured, WrongBase
from pipeline.domain.rank_api import BEFORE_FRAMES, EditorSettings
from tests.support.ledger_parts import prior_lines
from tests.support.tiny_editors import ANSWER, SUBJECT, tiny_editor
from tests.support.tiny_models import TEXT, save_tiny_llama


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model, an editor for it, and what a lineage is measured on."""
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("editors.mend.shipped.PRETRAINED", tmp_path / "pretrained")
    save_tiny_llama(tmp_path / "model", hidden=32, mlp=32)
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "prior.txt").write_text("\n".join(prior_lines()))
    (tmp_path / "suite.jsonl").write_text('{"prompt": "Berlin is a city in", "target": "Germany"}\n')
    tiny_editor(tmp_path / "model").save(tmp_path / "editor")
    return tmp_path


def inputs(files: Path, **changes: Any) -> Inputs:
    fields: dict[str, Any] = {
        "model": files / "model",
        "suite": files / "suite.jsonl",
        "text": files / "text.txt",
        "prior_text": (files / "prior.txt",),
        "editor": str(files / "editor"),
    }
    return Inputs(**(fields | changes))


def test_a_lineage_takes_weights_and_settings_from_the_card(files: Path) -> None:
    digest = tiny_editor(files / "model").digest
    found = prepare(inputs(files), files / "out")
    assert found["task"] == "causal", "as the model's config declares"
    assert found["inner_params"] == [SUBJECT, ANSWER]
    assert found["editor"]["inner_params"] == [SUBJECT, ANSWER]
    assert found["editor"]["subject_params"] == [SUBJECT]
    assert (found["editor"]["solver"], found["editor"]["transform"]) == ("recursive", digest)
    assert (found["editor"]["stop_probability"], found["editor"]["step"], found["editor"]["trained_passes"]) == (
        0.7,
        0.3,
        2,
    )
    assert found["trained"] == {"name": "editor", "card": f"editor/{CARD}", "tensors": f"editor/{TENSORS}"}
    copied = TrainedEditor.load(files / "out" / "editor", found["base_digest"], expected_digest=digest)
    assert copied.card == tiny_editor(files / "model").card
    assert json.loads((files / "out" / "lineage.json").read_text()) == found


WITH_FRAMES = {"step": 0.3, "frames_per_pass": 3, "num_guards": 2, "rephrase_rows": 1}
"""Settings in the card of an editor that was trained for edits with frames."""


def test_without_a_choice_the_editor_that_ships_for_the_base_is_taken_or_none(files: Path) -> None:
    digest = base_digest(files / "model")
    assert shipped_editor(digest) is None, "the folder is not there"
    assert prepare(inputs(files, editor=""), files / "none")["trained"] is None
    tiny_editor(files / "model", base_digest="f" * 64, settings=WITH_FRAMES).save(files / "pretrained" / "another")
    assert shipped_editor(digest) is None
    made = tiny_editor(files / "model", settings=WITH_FRAMES)
    made.save(files / "pretrained" / "tiny")
    assert shipped_editor(digest) == files / "pretrained" / "tiny"
    chosen = prepare(inputs(files, editor=""), files / "shipped")
    assert (chosen["trained"]["name"], chosen["editor"]["transform"]) == ("tiny", made.digest)
    assert {name: chosen["editor"][name] for name in WITH_FRAMES} == WITH_FRAMES
    asked = prepare(inputs(files, editor="none"), files / "asked")
    assert (asked["trained"], asked["editor"]["transform"]) == (None, "gradient")
    weights = prepare(inputs(files, editor="", inner_params=(ANSWER,)), files / "weights")
    assert (weights["trained"], weights["inner_params"]) == (None, [ANSWER])


def test_an_editor_that_ships_for_one_row_an_edit_has_to_be_named(files: Path) -> None:
    folder = files / "pretrained" / "before-frames"
    made = tiny_editor(files / "model")
    made.save(folder)
    assert shipped_editor(base_digest(files / "model")) is None
    left_out = prepare(inputs(files, editor=""), files / "left-out")
    assert (left_out["trained"], left_out["editor"]["transform"]) == (None, "gradient")
    assert left_out["editor"]["frames_per_pass"] == EditorSettings().frames_per_pass > 0
    named = prepare(inputs(files, editor=str(folder)), files / "named")
    assert (named["trained"]["name"], named["editor"]["transform"]) == ("before-frames", made.digest)
    assert {name: named["editor"][name] for name in BEFORE_FRAMES} == BEFORE_FRAMES


@pytest.mark.parametrize("content", ["[]", "{", '{"base_digest": "f"}', '{"base_digest": "f", "settings": []}'])
def test_a_shipped_card_that_cannot_be_read_is_damage(files: Path, content: str) -> None:
    (files / "pretrained" / "tiny").mkdir(parents=True)
    (files / "pretrained" / "tiny" / CARD).write_text(content)
    with pytest.raises(IntegrityBroken, match="tiny"):
        prepare(inputs(files, editor=""), files / "out")


def of_another_base(files: Path) -> None:
    tiny_editor(files / "model", base_digest="f" * 64).save(files / "editor")


def damaged(files: Path) -> None:
    content = bytearray((files / "editor" / TENSORS).read_bytes())
    content[-1] ^= 1
    (files / "editor" / TENSORS).write_bytes(bytes(content))


def of_another_task(files: Path) -> None:
    tiny_editor(files / "model", task="seq2seq").save(files / "editor")


def for_a_solver_that_forgets(files: Path) -> None:
    tiny_editor(files / "model", solver="sum").save(files / "editor")


def for_an_unknown_solver(files: Path) -> None:
    tiny_editor(files / "model", solver="alchemy").save(files / "editor")


def with_rows_at_every_token(files: Path) -> None:
    stages = (CardStage(inner_params=(SUBJECT,), key_tokens="all"),)
    tiny_editor(files / "model", stages=stages).save(files / "editor")


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (of_another_base, WrongBase, "f{64}"),
        (damaged, IntegrityBroken, TENSORS),
        (lambda files: (files / "editor" / CARD).unlink(), IntegrityBroken, CARD),
        (of_another_task, Misconfigured, "task causal, got one for seq2seq"),
        (for_a_solver_that_forgets, Misconfigured, "take edits out again .recursive., got one for sum"),
        (for_an_unknown_solver, Misconfigured, "alchemy"),
        (with_rows_at_every_token, Misconfigured, "subject or answer tokens, got one with all"),
    ],
)
def test_an_editor_that_does_not_fit_is_refused_before_anything_is_measured(
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    error: type[Exception],
    words: str,
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("the base was measured")

    monkeypatch.setattr(preparing, "_measure", fail)
    spoil(files)
    with pytest.raises(error, match=words):
        prepare(inputs(files), files / "out")
    names = {"--model": "model", "--suite": "suite.jsonl", "--text": "text.txt", "--prior-text": "prior.txt"}
    arguments = [part for flag, name in names.items() for part in (flag, str(files / name))]
    assert preparing.main([*arguments, "--editor", str(files / "editor"), "--out", str(files / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"{error.__name__}: expected ")
    assert said.count("\n") == 1


def test_weights_and_an_editor_cannot_both_be_chosen(files: Path) -> None:
    with pytest.raises(Misconfigured, match="got both"):
        prepare(inputs(files, inner_params=(ANSWER,)), files / "out")


def test_the_best_editor_of_a_training_run_is_called_by_the_run(files: Path) -> None:
    tiny_editor(files / "model").save(files / "run-7" / "best")
    found = prepare(inputs(files, editor=str(files / "run-7" / "best")), files / "out")
    assert found["trained"]["name"] == "run-7/best"


@pytest.mark.parametrize("architectures", [[], ["LlamaModel"], None])
def test_a_config_that_declares_no_head_has_to_be_helped(files: Path, architectures: list[str] | None) -> None:
    path = files / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": architectures}))
    with pytest.raises(Misconfigured, match="--task"):
        prepare(inputs(files), files / "out")
    assert prepare(inputs(files, task="causal"), files / "out")["task"] == "causal"


def test_what_ships_is_whole_and_small_and_fit_for_a_lineage() -> None:
    cards = sorted(PRETRAINED.glob(f"*/{CARD}"))
    assert cards
    for card in cards:
        shipped = TrainedEditor.load(card.parent)
        assert lineage_settings(shipped, task=shipped.card.task).transform == shipped.digest
        assert sum(path.stat().st_size for path in card.parent.iterdir()) < 10_000_000
