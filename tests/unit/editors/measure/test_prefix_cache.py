"""What enters the first edited block: kept in memory, then on disk, then computed again, always with the same bits."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from editors.measure.prefix_cache import PrefixCache
from editors.measure.spill_file import SpillFile
from editors.models.families import EditableModel
from editors.models.tokens import Encoded
from editors.training.examples import Reader
from editors.weights.loading import load_base
from tests.support.ledger_parts import prior_lines
from tests.support.tiny_families import tiny_model
from tests.support.tiny_models import save_tiny_llama

ONE = 4 * 10
"""Bytes of a tensor of `numbered`."""


def numbered(number: int) -> Tensor:
    return torch.full((2, 5), float(number))


def same(kept: Tensor | None, expected: Tensor) -> bool:
    return kept is not None and torch.equal(kept, expected)


@pytest.fixture
def model(tmp_path: Path) -> EditableModel:
    """Edited from its third block of four on."""
    save_tiny_llama(tmp_path)
    return load_base(tmp_path, ["model.layers.2.mlp.down_proj.weight", "model.layers.3.mlp.down_proj.weight"])


def sequences_of(model: EditableModel) -> list[Encoded]:
    return [model.encode_pair(line, "king") for line in prior_lines()[:12]]


def logits(model: EditableModel, prepared: Any) -> list[Tensor]:
    return [model.target_logits(batch) for _, batch in prepared]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_ring_gives_back_the_bits_that_it_was_given(dtype: torch.dtype) -> None:
    ring = SpillFile(max_bytes=10_000)
    given = {place: (torch.randn(1, place + 1, 3) * 100).to(dtype) for place in range(4)}
    for place, tensor in given.items():
        ring.put(place, tensor)
    for place, tensor in given.items():
        found = ring.get(place)
        assert found is not None
        assert found.dtype == dtype
        assert torch.equal(found, tensor)


def test_a_ring_forgets_the_oldest_and_never_gives_another_tensor() -> None:
    ring = SpillFile(max_bytes=3 * ONE + ONE // 2)
    for number in range(20):
        ring.put(number, numbered(number))
        kept = [known for known in range(20) if known in ring]
        assert kept == list(range(max(0, number - 2), number + 1))
        assert ring.num_bytes == len(kept) * ONE <= 3 * ONE
        assert all(same(ring.get(known), numbered(known)) for known in kept)
        assert all(ring.get(gone) is None for gone in range(max(0, number - 2)))


def test_a_ring_of_tensors_of_any_length_stays_within_its_bytes_and_right() -> None:
    ring, draw = SpillFile(max_bytes=1000), torch.Generator().manual_seed(0)
    given: dict[int, Tensor] = {}
    for number in range(300):
        given[number] = torch.randn(int(torch.randint(1, 90, (1,), generator=draw)), generator=draw)
        ring.put(number, given[number])
        assert number in ring
        assert ring.num_bytes <= 1000
    kept = [number for number in given if number in ring]
    assert kept == list(range(kept[0], 300)), "the newest, without a gap"
    for number in kept:
        found = ring.get(number)
        assert found is not None
        assert torch.equal(found, given[number])


def test_a_tensor_that_is_larger_than_the_ring_is_left_out_and_a_known_key_stays() -> None:
    ring = SpillFile(max_bytes=ONE)
    ring.put("small", numbered(1))
    ring.put("large", torch.zeros(1000))
    ring.put("small", numbered(2))
    assert "large" not in ring
    assert same(ring.get("small"), numbered(1))


@pytest.mark.parametrize("num_written", [None, 0, ONE - 1])
def test_a_disk_without_room_stops_the_keeping_and_nothing_else(
    num_written: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = SpillFile(max_bytes=10 * ONE)
    ring.put("first", numbered(1))

    def without_room(*_: Any) -> int:
        if num_written is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return num_written

    monkeypatch.setattr(os, "pwrite", without_room)
    ring.put("second", numbered(2))
    monkeypatch.undo()
    ring.put("third", numbered(3))
    assert ("second" in ring, "third" in ring) == (False, False)
    assert same(ring.get("first"), numbered(1))


def test_a_ring_leaves_no_file(tmp_path: Path) -> None:
    ring = SpillFile(max_bytes=1000, folder=tmp_path)
    ring.put("first", numbered(1))
    assert list(tmp_path.iterdir()) == []


def test_logits_from_kept_prefixes_are_those_of_the_whole_model(model: EditableModel) -> None:
    sequences = sequences_of(model)
    cache = PrefixCache(model)
    prepared = cache.prepare_alone(sequences)
    assert all(batch.prefix is not None and batch.prefix.block == 2 for _, batch in prepared)
    whole = logits(model, model.chunked(sequences))
    for found, expected in zip(logits(model, prepared), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("memory", "disk"), [(10**6, 0), (700, 10**6), (700, 1500), (0, 10**6), (0, 0)])
def test_the_bits_do_not_depend_on_what_is_kept_where(memory: int, disk: int, model: EditableModel) -> None:
    sequences = sequences_of(model)
    expected = logits(model, PrefixCache(model).prepare_alone(sequences))
    cache = PrefixCache(model, max_bytes=memory, disk=SpillFile(max_bytes=disk) if disk else None)
    for chosen in (sequences[:5], sequences[3:9], sequences[::-1]):
        cache.prepare_alone(chosen)
        assert cache.num_bytes <= memory
    found = logits(model, cache.prepare_alone(sequences))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_what_went_to_disk_is_not_computed_again(model: EditableModel) -> None:
    sequences = sequences_of(model)
    num = len(set(sequences))
    kept, forgot = PrefixCache(model, max_bytes=0, disk=SpillFile(max_bytes=10**6)), PrefixCache(model, max_bytes=0)
    for _ in range(3):
        kept.prepare_alone(sequences)
        forgot.prepare_alone(sequences)
    assert (kept.num_computed, forgot.num_computed) == (num, 3 * num)


def test_a_model_that_is_edited_from_its_first_block_on_has_no_prefix(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path)
    model = load_base(tmp_path, ["model.layers.0.mlp.down_proj.weight"])
    sequences = sequences_of(model)
    prepared = Reader(model, max_bytes=10**6).prepare(sequences)
    assert [batch.prefix for _, batch in prepared] == [None] * len(prepared)
    assert all(
        torch.equal(one, other)
        for one, other in zip(logits(model, prepared), logits(model, model.chunked(sequences)), strict=True)
    )


@pytest.mark.parametrize("name", ["t5", "bart", "bert"])
def test_families_without_a_prefix_are_asked_whole(name: str) -> None:
    model = tiny_model(name)
    sequences = [model.encode_text("the capital of Japan is located in", max_tokens=6) for _ in range(3)]
    cache = PrefixCache(model)
    for _ in range(2):
        assert all(batch.prefix is None for _, batch in cache.prepare_alone(sequences))
    assert cache.num_computed == 1, "asked once whether there is one"
