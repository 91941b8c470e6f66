"""Files of tensors that are written part by part have the bytes that the library gives of whole ones."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import torch

from editors.weights.tensor_files import KINDS, read_tensors, tensor_bytes, write_tensors
from pipeline.domain.formats.canonical import sha256_file

FACTS = {"kind": "rows", "ключ": 'a "b" \\ 🙂'}


def of_all_types() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    found = {
        f"{place}.{kind}": (torch.randn(3, 5, generator=draw) * 50).to(kind)
        for kind in KINDS
        for place in ("b", "a", 'é "\n')
    }
    return found | {"none": torch.zeros(0, 4), "one": torch.tensor(2.5), "turned": torch.randn(4, 3, generator=draw).T}


def test_the_bytes_are_those_of_the_library_for_every_type(tmp_path: Path) -> None:
    path, tensors = tmp_path / "x", of_all_types()
    digest = write_tensors(path, tensors, FACTS)
    assert path.read_bytes() == tensor_bytes(tensors, FACTS)
    assert digest == sha256_file(path)
    found, facts = read_tensors(path, "rows", digest)
    assert facts == {"format": "corrigenda.1", **FACTS}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


def test_parts_of_a_tensor_are_written_as_the_tensor_is(tmp_path: Path) -> None:
    parts = [torch.arange(6.0).reshape(2, 3), torch.zeros(0, 3), torch.ones(1, 3)]
    whole = write_tensors(tmp_path / "whole", {"a": torch.cat(parts)}, FACTS)
    assert write_tensors(tmp_path / "parts", {"a": parts}, FACTS) == whole


def test_a_file_takes_no_memory_beside_its_parts(tmp_path: Path) -> None:
    parts = [torch.ones(1000, 100) for _ in range(20)]
    tracemalloc.start()
    write_tensors(tmp_path / "x", {"a": parts}, FACTS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "x").stat().st_size > 8_000_000
    assert peak < 400_000
