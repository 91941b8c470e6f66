"""An editor directory: the same bytes for the same editor, and a refusal of everything that is not it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from editors.mend.checkpoint import TENSORS, CardStage, DataFile, EditorCard, TrainedEditor
from editors.mend.shipped import CARD, PRETRAINED
from editors.mend.transform import MendTransform, Statistics
from pipeline.domain.errors import IntegrityBroken, Misconfigured, WrongBase
from pipeline.domain.formats.canonical import sha256_file, sha256_json

NAMES = ("blocks.10.weight", "blocks.2.weight")
"""In an order that is not the alphabet's."""
SHAPES = {NAMES[0]: (6, 4), NAMES[1]: (6, 4)}
BASE = "b" * 64


def editor(seed: int = 0, *, statistics: Statistics = "param") -> TrainedEditor:
    transform = MendTransform(SHAPES, rank=2, statistics=statistics, stop_probability=0.9)
    generator = torch.Generator().manual_seed(seed)
    for name, (width, height) in SHAPES.items():
        transform.observe(name, torch.randn(9, width, generator=generator), torch.randn(9, height, generator=generator))
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    card = EditorCard(
        base_digest=BASE,
        task="causal",
        solver="sum",
        stages=(CardStage(inner_params=NAMES, key_tokens="all"),),
        shapes=tuple((name, *shape) for name, shape in SHAPES.items()),
        rank=2,
        statistics=statistics,
        stop_probability=0.9,
        settings={"num_passes": 1},
        training={"c_edit": 0.1},
        data=(DataFile(name="train.jsonl", digest="d" * 64, use="train"),),
        metrics={"score": -0.5},
        command="corrigenda train",
        num_steps=7,
        versions={"torch": "2"},
        licence="MIT",
    )
    return TrainedEditor(card=card, transform=transform)


@pytest.mark.parametrize("statistics", ["shape", "param", "token"])
def test_a_saved_and_reloaded_editor_gives_the_same_bytes_and_shifts(statistics: Statistics, tmp_path: Path) -> None:
    made = editor(statistics=statistics)
    digest = made.save(tmp_path / "one")
    read = TrainedEditor.load(tmp_path / "one", BASE, expected_digest=digest)
    assert read.card == made.card
    assert read.digest == made.digest == read.save(tmp_path / "two") == digest
    for name in (TENSORS, CARD):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    u, delta = torch.randn(5, 6), torch.randn(5, 4)
    for name in NAMES:
        assert torch.equal(read.transform.shift(name, u, delta), made.transform.shift(name, u, delta))
    assert read.transform.stop_probability == 0.9


def test_a_card_keeps_the_names_and_the_digest_that_it_was_written_with() -> None:
    document = editor().card.as_json()
    assert document["rest"] == 0.9
    assert "stop_probability" not in document
    assert EditorCard.from_json(document).as_json() == document
    shipped = PRETRAINED / "smollm2-135m-instruct"
    read = TrainedEditor.load(shipped)
    assert read.digest == sha256_json({name: sha256_file(shipped / name) for name in (TENSORS, CARD)})


@pytest.mark.parametrize(("solver", "is_published"), [("mend", True), ("sum", True), ("recursive", False)])
def test_an_editor_for_mend_as_published_says_so_in_either_word(solver: str, is_published: bool) -> None:
    assert replace(editor().card, solver=solver).is_published == is_published


def test_another_network_or_another_card_is_another_digest() -> None:
    digests = {editor().digest, editor(seed=1).digest}
    changed = editor()
    digests.add(TrainedEditor(card=replace(changed.card, num_steps=8), transform=changed.transform).digest)
    assert len(digests) == 3
    assert editor().digest in digests


def test_nothing_but_the_two_files_is_left_in_the_folder(tmp_path: Path) -> None:
    editor().save(tmp_path)
    editor(seed=1).save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CARD, TENSORS]
    assert TrainedEditor.load(tmp_path).digest == editor(seed=1).digest


def test_an_editor_of_another_base_is_refused(tmp_path: Path) -> None:
    editor().save(tmp_path)
    with pytest.raises(WrongBase, match=BASE):
        TrainedEditor.load(tmp_path, "c" * 64)


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / TENSORS).read_bytes())
    content[-1] ^= 1
    (folder / TENSORS).write_bytes(bytes(content))


def cut_the_tensors(folder: Path) -> None:
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:100])


def change_the_card(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        document = json.loads((folder / CARD).read_text())
        (folder / CARD).write_text(json.dumps(document | changes))

    return change


def change_the_tensors(content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / TENSORS).write_bytes(content)
        change_the_card(tensors=sha256_file(folder / TENSORS))(folder)

    return change


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        cut_the_tensors,
        change_the_card(rank=3),
        change_the_card(shapes=[["other", 6, 4]]),
        change_the_card(stages="none"),
        change_the_card(stages=[]),
        change_the_card(stages=[{"inner_params": ["other"], "key_tokens": "all"}]),
        change_the_card(stages=[{"inner_params": [*NAMES, "other"], "key_tokens": "subject"}]),
        change_the_card(rank=10**12),
        change_the_card(rank=0),
        change_the_card(shapes=[[name, 10**9, 10**9] for name in NAMES]),
        change_the_card(shapes=[[name, -6, -4] for name in NAMES]),
        change_the_card(settings={"step": "x"}),
        change_the_card(settings={"num_passes": 0}),
        change_the_card(settings={"num_guards": None}),
        change_the_card(rest=float("nan")),
        change_the_tensors(b"no tensors"),
        lambda folder: (folder / CARD).write_text("{"),
        lambda folder: (folder / CARD).write_text('{"format": ' + "[" * 100_000),
        lambda folder: (folder / CARD).write_text("[]"),
        lambda folder: (folder / CARD).unlink(),
        lambda folder: (folder / TENSORS).unlink(),
        lambda folder: editor(seed=1).save(folder / "x") and (folder / "x" / TENSORS).rename(folder / TENSORS),
    ],
)
def test_damaged_files_are_refused(damage: Callable[[Path], object], tmp_path: Path) -> None:
    editor().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(IntegrityBroken, match=str(tmp_path)):
        TrainedEditor.load(tmp_path, BASE)


def test_an_editor_that_was_exchanged_for_another_is_refused(tmp_path: Path) -> None:
    digest = editor().save(tmp_path)
    change_the_card(metrics={"score": 1.0})(tmp_path)
    TrainedEditor.load(tmp_path, BASE)
    with pytest.raises(IntegrityBroken, match=digest):
        TrainedEditor.load(tmp_path, BASE, expected_digest=digest)


def test_a_card_of_a_later_format_is_refused_as_such(tmp_path: Path) -> None:
    editor().save(tmp_path)
    change_the_card(format=99)(tmp_path)
    with pytest.raises(Misconfigured, match="99"):
        TrainedEditor.load(tmp_path)
