"""An evaluation on a pretended accelerator: no device is mixed with another, and the figures are the same."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from editors.evaluation.__main__ import main
from editors.measure.scoring import compared, prepare, readings, scores
from editors.weights.loading import load_base
from pipeline.domain.errors import Misconfigured
from tests.support.ledger_parts import FACTS, prior_lines
from tests.support.pretend_device import PretendDevice
from tests.support.tiny_editors import tiny_editor
from tests.support.tiny_models import TEXT, save_tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a trained editor and everything that is asked of the model."""
    made = tmp_path_factory.mktemp("files")
    save_tiny_llama(made / "model", hidden=32, mlp=32)
    (made / "text.txt").write_text(TEXT)
    (made / "prior.txt").write_text("\n".join(prior_lines()))
    edits = [
        {
            "prompt": prompt,
            "subject": " ".join(prompt.split()[:2]),
            "target_new": target,
            "rephrases": ["what is", f"say {prompt}"],
            "locality": [{"prompt": f"where is {place}", "target": "Rome"}],
            "question": "where is it",
        }
        for place, (prompt, target) in enumerate(FACTS)
    ]
    edits.append({"prompt": FACTS[0][0], "target_new": "Rome"})  # takes the first out again
    (made / "edits.jsonl").write_text("\n".join(map(json.dumps, edits)))
    tiny_editor(made / "model").save(made / "editor")
    return made


def figures(folder: Path, *more: str, device: str) -> dict[str, Any]:
    names = {"--data": "edits.jsonl", "--model": "model", "--text": "text.txt", "--prior-text": "prior.txt"}
    files = [part for flag, name in names.items() for part in (flag, str(folder / name))]
    rest = ["--edits", "6", "--batch", "2", "--num-passes", "3", "--device", device, "--json", str(folder / "out.json")]
    assert main([*files, *rest, *more]) == 0
    found: dict[str, Any] = json.loads((folder / "out.json").read_text())["solvers"]
    return found


@pytest.mark.parametrize(
    "more",
    [
        ["--solver", "recursive,row_sum,ft"],
        ["--solver", "recursive", "--protocol", "single"],
        ["--solver", "recursive", "--editor", "{folder}/editor"],
        ["--fold", "--fold-num-rounds", "2", "--fold-learning-rate", "0.01"],
    ],
    ids=["stream", "single", "trained", "folded"],
)
def test_an_accelerator_gives_the_figures_of_a_cpu_and_mixes_no_devices(
    folder: Path, more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A device reads more prompts in one forward, which gives other last bits; here both read as many.
    monkeypatch.setattr("editors.models.causal.FORWARD_TOKENS", 10**6)
    arguments = [part.format(folder=folder) for part in more]
    on_cpu = figures(folder, *arguments, device="cpu")
    with PretendDevice() as device:
        found = figures(folder, *arguments, device="cuda:0")
    assert device.fetched["cpu"] > 0, "nothing was ever on the device"
    assert ("recursive, folded" in on_cpu) == ("--fold" in more)
    for name, expected in on_cpu.items():
        for figure in ("edit_success", "token_fraction", "locality_unchanged"):
            assert found[name][figure] == expected[figure]
        assert found[name]["locality_kl"] == pytest.approx(expected["locality_kl"], abs=1e-5)
        assert found[name]["drawdown"] == pytest.approx(expected["drawdown"], abs=1e-5)
        assert found[name]["editing"]["failed_batches"] == 0


def test_what_is_read_of_a_batch_comes_over_at_once_however_many_sequences_it_has(folder: Path) -> None:
    def fetched(num_sequences: int) -> Counter[str]:
        with PretendDevice() as device:
            model = load_base(folder / "model", device="cuda:0")
            pairs = [(f"where is {place}", "Rome") for place in range(num_sequences)]
            prepared = prepare(model, [model.encode_pair(*pair) for pair in pairs])
            before = readings(model, prepared)
            device.fetched.clear()
            compared(model, prepared, [before])
            scores(model, prepared)
            return Counter(device.fetched)

    assert fetched(9) == fetched(2)


def test_a_large_device_runs_more_at_once_and_a_full_one_as_much_as_a_cpu(folder: Path) -> None:
    model = load_base(folder / "model")
    held = sum(one.numel() * one.element_size() for one in model.module.parameters())
    sequences = [model.encode_pair("where is it", "Rome")] * 40
    num_tokens = len(sequences[0].prompt_ids) + len(sequences[0].target_ids) - 1

    def num_batches(device: str) -> int:
        loaded = load_base(folder / "model", device=device)
        return len(list(loaded.chunked(sequences, max_tokens=num_tokens)))

    assert num_batches("cpu") == 40
    for num_models, expected in ((1000, 5), (10, 20), (2, 40)):
        with PretendDevice(num_bytes=num_models * held):
            assert num_batches("cuda") == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has such a device")
@pytest.mark.parametrize("name", ["cuda", "cuda:1", "graphics card", "meta", "mps", "cpu:0", "cuda:99999999999"])
def test_a_device_that_is_not_there_is_named(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Misconfigured, match=name):
        load_base(folder / "model", device=name)
    assert (
        main(
            ["--data", str(folder / "edits.jsonl"), "--model", str(folder / "model"), "--edits", "1", "--device", name]
        )
        == 1
    )
    said = capsys.readouterr().err
    assert f"expected a device that {'is here' if name in ('cuda', 'cuda:1') else 'models run on'}" in said
    assert name in said
    assert len(said) < 200


def test_a_fold_is_asked_beside_the_stream_that_it_folds(folder: Path) -> None:
    found = figures(folder, "--fold", "--fold-num-rounds", "40", "--fold-learning-rate", "0.02", device="cpu")
    stream, folded = found["recursive"], found["recursive, folded"]
    assert folded["active"] == stream["active"] == 5
    assert folded["edit_success"] == 1.0
    assert folded["token_fraction"] >= stream["token_fraction"]
    assert (folded["editing"]["batches"], stream["editing"]["batches"]) == (1, 3)
    assert folded["cost"]["seconds_per_edit"] > 0


@pytest.mark.parametrize("more", [["--solver", "ft"], ["--solver", "recursive,ft"], ["--protocol", "single"]])
def test_only_a_stream_with_a_ledger_is_folded(
    folder: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"--data": "edits.jsonl", "--model": "model", "--text": "text.txt", "--prior-text": "prior.txt"}
    files = [part for flag, name in names.items() for part in (flag, str(folder / name))]
    assert main([*files, "--edits", "6", "--fold", *more]) == 1
    assert "fold, got" in capsys.readouterr().err.replace("--", "")
