"""The digest of a base: what changes its answers changes it, and what does not, does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from editors.mend.shipped import shipped_editor
from editors.models.digest import base_digest, config_to_record, names_base, require_base
from editors.weights.loading import load_snapshot
from pipeline.domain.errors import Misconfigured, WrongBase
from pipeline.domain.rank_api import BaseSpec
from tests.support.tiny_models import save_tiny_llama


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny Llama in a folder."""
    save_tiny_llama(tmp_path / "base")
    return tmp_path / "base"


def changed(folder: Path, name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """A copy of a folder in which one configuration is another."""
    copy = Path(shutil.copytree(folder, folder.with_name("copy"), dirs_exist_ok=True))
    path = copy / name
    document = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(change(document), indent=3))
    return copy


ANOTHER_ANSWER: list[tuple[str, dict[str, Any]]] = [
    ("config.json", {"rope_theta": 77.0}),
    ("config.json", {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}),
    ("config.json", {"rms_norm_eps": 0.5}),
    ("config.json", {"hidden_act": "gelu"}),
    ("config.json", {"sliding_window": 7}),
    ("config.json", {"num_attention_heads": 1}),
    ("config.json", {"torch_dtype": "float16", "dtype": None}),
    ("generation_config.json", {"repetition_penalty": 1.3}),
    ("tokenizer_config.json", {"chat_template": "{{ messages[0].content }}!"}),
    ("tokenizer_config.json", {"add_bos_token": True}),
    ("special_tokens_map.json", {"unk_token": "?"}),
    ("added_tokens.json", {"<new>": 7}),
]


@pytest.mark.parametrize(("name", "fields"), ANOTHER_ANSWER, ids=lambda value: str(value)[:40])
def test_what_changes_the_answers_of_the_same_weights_changes_the_digest(
    base: Path, name: str, fields: dict[str, Any]
) -> None:
    copy = changed(base, name, lambda document: document | fields)
    found, before = base_digest(copy), base_digest(base)
    assert found != before
    assert found.before == before.before


def test_a_chat_template_of_its_own_file_changes_the_digest(base: Path) -> None:
    before = base_digest(base)
    (base / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert base_digest(base) != before


@pytest.mark.parametrize(
    "fields",
    [
        {"transformers_version": "4.0"},
        {"_name_or_path": "/home/ada/model"},
        {"architectures": ["Another"]},
        {"use_cache": False},
        {"a_field_of_a_newer_library": None},
    ],
    ids=str,
)
def test_what_the_library_writes_of_itself_does_not_change_the_digest(base: Path, fields: dict[str, Any]) -> None:
    assert base_digest(changed(base, "config.json", lambda document: document | fields)) == base_digest(base)


def test_order_and_layout_of_a_configuration_do_not_matter_and_one_dtype_has_two_names(base: Path) -> None:
    def turned(document: dict[str, Any]) -> dict[str, Any]:
        told = dict(reversed(document.items()))
        dtype = told.pop("dtype", None) or told.pop("torch_dtype")
        return told | {"torch_dtype": dtype}

    assert base_digest(changed(base, "config.json", turned)) == base_digest(base)


def test_numbers_without_a_canonical_form_are_digested_too(base: Path) -> None:
    huge = changed(base, "tokenizer_config.json", lambda document: document | {"model_max_length": 10**30})
    (huge / "generation_config.json").write_text('{"suppress": NaN, "bias": -Infinity}')
    first = base_digest(huge)
    (huge / "generation_config.json").write_text('{"suppress": NaN, "bias": Infinity}')
    assert base_digest(huge) != first


def test_a_damaged_configuration_is_named(base: Path) -> None:
    (base / "config.json").write_text("{")
    with pytest.raises(Misconfigured, match=r"config\.json"):
        base_digest(base)


class TestDigestsOfBefore:
    """Digests that were made of weights and tokenizer alone."""

    def test_a_lineage_of_before_goes_on_and_its_configurations_are_recorded_once(self, base: Path) -> None:
        found = base_digest(base)
        old = BaseSpec(ref=str(base), digest=found.before, task="causal")
        require_base(old, found)
        assert config_to_record(old, found) == found.config
        bound = replace(old, config_digest=found.config)
        require_base(bound, found)
        assert config_to_record(bound, found) is None
        assert config_to_record(replace(old, digest=found), found) is None
        load_snapshot(base, base=bound, inner_param_names=(), accumulator=None, deltas=())

    def test_once_recorded_another_configuration_is_another_base(self, base: Path) -> None:
        found = base_digest(base)
        bound = BaseSpec(ref=str(base), digest=found.before, task="causal", config_digest=found.config)
        copy = changed(base, "config.json", lambda document: document | {"rope_theta": 77.0})
        with pytest.raises(WrongBase, match=found.config):
            load_snapshot(copy, base=bound, inner_param_names=(), accumulator=None, deltas=())
        with pytest.raises(WrongBase, match=found):
            load_snapshot(copy, base=replace(bound, digest=found), inner_param_names=(), accumulator=None, deltas=())

    def test_an_editor_that_names_its_base_by_one_is_still_its_editor(self, base: Path, tmp_path: Path) -> None:
        found = base_digest(base)
        card = tmp_path / "editors" / "old" / "card.json"
        card.parent.mkdir(parents=True)
        card.write_text(json.dumps({"base_digest": found.before, "settings": {"frames_per_pass": 2}}))
        assert shipped_editor(found, tmp_path / "editors") == card.parent
        assert names_base(found.before, found)
        assert not names_base("f" * 64, found)
