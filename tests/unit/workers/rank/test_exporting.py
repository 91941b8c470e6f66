"""A model that is written file by file is the model that transformers itself would write and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from editors.models.digest import base_digest
from pipeline.domain.errors import InvalidInput
from pipeline.domain.rank_api import BaseSpec
from tests.support.tiny_models import save_tiny_gpt2, save_tiny_llama
from workers.rank.exporting import described, export_model, require_free
from workers.rank.sharded_model import ShardedModel


def resident(folder: Path) -> ShardedModel:
    """A model whose weights this process holds whole, as those of a rank alone."""
    base: Any = BaseSpec(ref=str(folder), digest="", task="causal")
    module = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    unused: Any = None
    return ShardedModel(base=base, module=module, tokenizer=tokenizer, engine=unused, config=unused, is_resident=True)


@pytest.mark.parametrize("save", [save_tiny_llama, save_tiny_gpt2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("file_bytes", [1, 5_000, 2**30], ids=["a-file-each", "some-files", "one-file"])
def test_an_export_has_the_files_and_the_digest_that_transformers_gives_it(
    save: Any, file_bytes: int, tmp_path: Path
) -> None:
    save(tmp_path / "base")
    model = resident(tmp_path / "base")
    export_model(model, tmp_path / "ours", is_writer=True, file_bytes=file_bytes)
    module: Any = model.module
    module.save_pretrained(tmp_path / "theirs", max_shard_size=file_bytes)
    model.tokenizer.save_pretrained(tmp_path / "theirs")
    names = [path.name for path in (tmp_path / "ours").glob("*.safetensors")]
    assert len(names) == 1 or (tmp_path / "ours" / "model.safetensors.index.json").is_file()
    assert (len(names) == 1) == (file_bytes == 2**30)
    assert described(tmp_path / "ours").digest == base_digest(tmp_path / "ours") == base_digest(tmp_path / "theirs")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").state_dict()
    assert all(torch.equal(read[name], value) for name, value in model.module.state_dict().items())
    if len(names) > 1:
        index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"].values()) == set(names)
        assert index["metadata"]["total_size"] == sum(
            value.numel() * value.element_size() for value in dict.fromkeys(model.module.parameters())
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_plain_transformers_gets_the_same_logits_chats_and_endings_from_an_export(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    save_tiny_llama(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.chat_template = "{% for m in messages %}question {{ m['content'] }} {% endfor %}answer is"
    tokenizer.save_pretrained(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(tmp_path / "base").to(dtype).save_pretrained(tmp_path / "base")
    model = resident(tmp_path / "base")
    export_model(model, tmp_path / "ours", is_writer=True, file_bytes=5_000)
    read: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    ids = torch.arange(4, 12)[None, :]
    module: Any = model.module
    assert next(read.parameters()).dtype == dtype
    assert torch.equal(read(ids).logits, module(ids).logits)
    assert read.get_input_embeddings().weight is read.get_output_embeddings().weight, "tied in the base, tied here"
    assert read.generation_config.eos_token_id == 2
    turns = [{"role": "user", "content": "who"}]
    templated = AutoTokenizer.from_pretrained(tmp_path / "ours").apply_chat_template(turns, tokenize=False)
    assert templated == tokenizer.apply_chat_template(turns, tokenize=False) == "question who answer is"


def test_a_folder_that_is_taken_is_refused(tmp_path: Path) -> None:
    require_free(tmp_path / "new")
    require_free(tmp_path)
    (tmp_path / "file").write_text("mine")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(InvalidInput, match="new or empty folder"):
            require_free(taken)
