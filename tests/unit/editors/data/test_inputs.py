"""What edits and bases are read from: files, prompts, digests."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from editors.data.datasets import (
    edit_lines,
    latest_of_each_fact,
    prior_lines,
    prior_subjects,
    read_edits,
    read_suite,
    read_text,
)
from editors.models.digest import base_digest
from editors.models.inner_params import true_shape
from editors.models.tokens import chunks, encode_pair, encode_prompt
from editors.weights.loading import load_base
from pipeline.domain.contract.wire import parse_object
from pipeline.domain.edits import Edit, Probe
from pipeline.domain.errors import InvalidInput, Misconfigured
from tests.support.factories import CHAT_REQUEST, NOON, WIRE_REQUEST
from tests.support.tiny_models import save_tiny_llama

COUNTERFACT = {
    "split": "val",
    "case_id": 10,
    "relation": None,
    "subject": "BBC One",
    "prompt": "BBC One, by",
    "target_new": "Sega",
    "target_true": "BBC",
    "paraphrases": ["BBC One is owned by", "BBC One owner"],
    "locality_prompt": "BBC Radio, by",
    "locality_answer": "BBC",
}


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_counterfact_with_paraphrases_is_read_as_edits(tmp_path: Path) -> None:
    [edit] = read_edits(write_lines(tmp_path / "data.jsonl", COUNTERFACT))
    request = edit.request
    assert (request.prompt, request.target_new, request.target_true) == ("BBC One, by", "Sega", "BBC")
    assert request.rephrases == ("BBC One is owned by", "BBC One owner")
    assert [(probe.prompt, probe.target) for probe in request.locality] == [("BBC Radio, by", "BBC")]


def test_our_own_lines_may_leave_out_what_the_wire_needs(tmp_path: Path) -> None:
    lines = [{"prompt": "A is", "target_new": "b"}, "", {"prompt": "C is", "target_new": "d", "lineage": "facts"}]
    edits = read_edits(write_lines(tmp_path / "data.jsonl", *lines))
    assert [edit.request.lineage for edit in edits] == ["evaluation", "facts"]
    assert len({edit.edit_id for edit in edits}) == 2
    assert len(read_edits(tmp_path / "data.jsonl", limit=1)) == 1


def test_what_is_written_in_our_own_format_is_read_as_the_same_requests(tmp_path: Path) -> None:
    first = parse_object(WIRE_REQUEST | {"question": "Which city?", "answer": "It is Canberra.", "aliases": ["Oz"]})
    requests = [first, parse_object(CHAT_REQUEST), parse_object(WIRE_REQUEST | {"prompt": "Oz is ruled from"})]
    path = tmp_path / "edits.jsonl"
    path.write_bytes(edit_lines([Edit(edit_id=str(place), request=request) for place, request in enumerate(requests)]))
    read = [edit.request for edit in read_edits(path)]
    ours: dict[str, Any] = {"lineage": "facts", "source": None, "submitted_by": None}
    assert [replace(request, **ours, request_id="r", occurred_at=NOON) for request in read] == [
        replace(request, **ours, request_id="r", occurred_at=NOON) for request in requests
    ]
    assert edit_lines(read_edits(path)) == path.read_bytes()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "expected JSON.*line 1 of"),
        ([1], "object in item 1"),
        ("3", "object in line 1"),
        ({"prompt": "A is"}, "target_new"),
        ({"prompt": "A is", "target_new": ""}, "line 1"),
    ],
)
def test_a_line_that_is_no_edit_is_named(line: object, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=complaint):
        read_edits(write_lines(tmp_path / "data.jsonl", line))


def test_a_byte_order_mark_and_the_separators_that_json_may_hold_are_no_trouble(tmp_path: Path) -> None:
    lines = [{"prompt": "A\u2028B\x85C is", "target_new": "b"}, {"prompt": "D is", "target_new": "e"}]
    text = "\ufeff" + "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (tmp_path / "data.jsonl").write_text(text, encoding="utf-8", newline="")
    assert [edit.request.target_new for edit in read_edits(tmp_path / "data.jsonl")] == ["b", "e"]
    (tmp_path / "latin.jsonl").write_bytes("é".encode("latin-1"))
    with pytest.raises(Misconfigured, match="UTF-8"):
        read_edits(tmp_path / "latin.jsonl")


@pytest.mark.parametrize("kind", ["one a line", "a list"])
def test_a_field_that_stands_twice_in_a_file_is_refused_at_any_depth(kind: str, tmp_path: Path) -> None:
    good = '{"prompt": "A is", "target_new": "a"}'
    bad = '{"prompt": "B is", "target_new": "b", "locality": [{"prompt": "C is", "prompt": "D is"}]}'
    text = f"{good}\n{bad}\n" if kind == "one a line" else f"[{good}, {bad}]"
    (tmp_path / "data.json").write_text(text)
    for read in (read_edits, read_suite, prior_lines):
        with pytest.raises(Misconfigured, match="duplicate field 'prompt'"):
            read(tmp_path / "data.json")


def test_a_suite_is_trimmed_as_an_edit_is(tmp_path: Path) -> None:
    probe = {"prompt": "The capital of Japan is  ", "target": " Tokyo", "subject": " Japan", "relation": "capital\t"}
    (found,) = read_suite(write_lines(tmp_path / "suite.jsonl", probe))
    assert found.probe == Probe(prompt="The capital of Japan is", target="Tokyo")
    assert (found.subject, found.relation) == ("Japan", "capital")


@pytest.mark.parametrize("name", ["prompt", "target", "subject", "relation"])
@pytest.mark.parametrize("value", [" ", "", "\u3000\u200b", 7, ["Tokyo"]])
def test_a_suite_with_blanks_for_a_text_is_refused(name: str, value: object, tmp_path: Path) -> None:
    line = {"prompt": "The capital of Japan is", "target": "Tokyo"} | {name: value}
    with pytest.raises(Misconfigured, match=f"{name} .*in line 1"):
        read_suite(write_lines(tmp_path / "suite.jsonl", line))


def test_lines_of_text_end_where_lines_of_json_do(tmp_path: Path) -> None:
    path = tmp_path / "prior.txt"
    path.write_bytes("\ufeffOne\u2028two\x85three\r\n\r\nfour\x0cfive".encode())
    assert prior_lines(path) == ["One\u2028two\x85three", "four\x0cfive"]


@pytest.mark.parametrize("name", ["d.ndjson", "d.txt", "d", "d.jsonl"])
def test_a_file_of_edits_is_known_by_its_first_line_whatever_its_name(name: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / name, "", {"prompt": "Rome is in", "target_new": "Oz", "subject": "Rome"})
    assert prior_lines(path) == ["Rome is in"]
    assert prior_subjects([path]) == [("Rome is in", "Rome")]
    for first in ("{braces}", "[1]", "7"):
        text = write_lines(tmp_path / "t.txt", first, "more")
        assert (prior_lines(text), prior_subjects([text])) == ([first, "more"], [])


def test_what_is_no_utf_8_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"prompt": "A is", "target_new": "a"}\n{"prompt": "\xe9 is", "target_new": "b"}')
    for read in (read_edits, read_suite, read_text, prior_lines):
        with pytest.raises(Misconfigured, match=r"UTF-8.*line 2"):
            read(path)


def test_a_file_without_edits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="at least one"):
        read_edits(write_lines(tmp_path / "data.jsonl", ""))
    with pytest.raises(Misconfigured, match="absent"):
        read_edits(tmp_path / "absent")


def test_of_two_corrections_of_a_fact_the_later_stays(tmp_path: Path) -> None:
    lines = [{"prompt": "A is", "target_new": "b"}, {"prompt": "C is", "target_new": "d"}]
    edits = read_edits(write_lines(tmp_path / "data.jsonl", *lines, {"prompt": "a  IS", "target_new": "e"}))
    assert [edit.request.target_new for edit in latest_of_each_fact(edits)] == ["d", "e"]


def test_a_suite_is_read_with_and_without_answers(tmp_path: Path) -> None:
    lines = [{"prompt": "A is", "target": "b", "subject": "A", "relation": "r"}, {"prompt": "C is"}]
    first, second = read_suite(write_lines(tmp_path / "suite.jsonl", *lines))
    assert (first.probe.target, first.subject, first.relation) == ("b", "A", "r")
    assert second.probe.target is None
    with pytest.raises(Misconfigured, match="line 1"):
        read_suite(write_lines(tmp_path / "suite.jsonl", {"target": "b"}))


def test_a_target_is_encoded_as_it_continues_its_prompt(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path)
    tokenizer = load_base(tmp_path).tokenizer
    pair = encode_pair(tokenizer, "the capital of Japan is", "Tokyo and")
    whole = encode_prompt(tokenizer, "the capital of Japan is Tokyo and")
    assert (*pair.prompt_ids, *pair.target_ids) == whole
    assert len(pair.target_ids) == 2
    with pytest.raises(InvalidInput, match="token"):
        encode_pair(tokenizer, "the capital of Japan is", " ")


def test_an_empty_prompt_starts_with_the_first_special_token(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path)
    tokenizer = load_base(tmp_path).tokenizer
    assert encode_prompt(tokenizer, "") == (tokenizer.bos_token_id,)


def test_chunks_hold_each_sequence_once_within_the_bound(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path)
    tokenizer = load_base(tmp_path).tokenizer
    sequences = [encode_pair(tokenizer, "city " * length, "Rome") for length in (3, 9, 1, 9, 4, 30)]
    found = list(chunks(sequences, max_tokens=20))
    assert sorted(place for group in found for place in group) == list(range(6))
    for group in found:
        assert len(group) == 1 or len(group) * max(len(sequences[place].prompt_ids) for place in group) <= 20


def test_a_partitioned_parameter_has_the_shape_of_the_whole_one() -> None:
    parameter = torch.nn.Parameter(torch.zeros(0))
    assert true_shape(parameter) == (0,)
    parameter.ds_shape = torch.Size([3, 5])  # type: ignore[attr-defined]
    assert true_shape(parameter) == (3, 5)


def test_the_base_digest_is_of_weights_and_tokenizer_wherever_they_lie(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "one")
    whole = base_digest(tmp_path / "one")
    split = Path(shutil.copytree(tmp_path / "one", tmp_path / "split"))
    weights = load_file(split / "model.safetensors")
    (split / "model.safetensors").unlink()
    names = sorted(weights)
    save_file({name: weights[name] for name in names[:3]}, split / "model-00002.safetensors")
    save_file({name: weights[name] for name in names[3:]}, split / "model-00001.safetensors", {"format": "pt"})
    assert base_digest(split) == whole
    weights[names[0]].view(-1)[0] += 1
    save_file({name: weights[name] for name in names[:3]}, split / "model-00002.safetensors")
    assert base_digest(split) != whole
    (tmp_path / "one" / "tokenizer.json").write_text("{}")
    assert base_digest(tmp_path / "one") != whole


def test_the_base_digest_is_of_the_stored_bytes_of_every_dtype(tmp_path: Path) -> None:
    tensors = {
        "c": torch.randn(3, 2, dtype=torch.bfloat16),
        "b": torch.tensor([True, False, True]),
        "a": torch.randn(2, 2).to(torch.float8_e4m3fn),
        "d": torch.zeros(0, 4),
        "e": torch.tensor(7),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    expected = hashlib.sha256()
    for name, dtype in {"a": "F8_E4M3", "b": "BOOL", "c": "BF16", "d": "F32", "e": "I64"}.items():
        tensor = tensors[name]
        expected.update(f"{name}\n{dtype} {list(tensor.shape)}\n".encode())
        expected.update(bytes(tensor.reshape(-1).view(torch.uint8).tolist()))
    assert base_digest(tmp_path).before == expected.hexdigest()


def test_a_folder_without_weights_is_no_base(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="safetensors"):
        base_digest(tmp_path)
    save_file({"a": torch.zeros(4)}, tmp_path / "model.safetensors")
    os.truncate(tmp_path / "model.safetensors", (tmp_path / "model.safetensors").stat().st_size - 1)
    with pytest.raises(Misconfigured, match="something else"):
        base_digest(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x05")
    with pytest.raises(Misconfigured, match="something else"):
        base_digest(tmp_path)
    with pytest.raises(Misconfigured, match="load"):
        load_base(tmp_path)
