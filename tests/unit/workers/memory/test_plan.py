"""What a rank needs for a base: planned figures against tensors that tiny models, ledgers and priors really have."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from editors.methods.base import EditJob
from editors.methods.edit_reading import MOST_LEFT
from editors.methods.recursive import RecursiveEditor
from editors.methods.select import resolved
from editors.models.families import editable, family_of
from editors.models.hooks import capturing
from editors.models.inner_params import inner_params
from editors.models.tokens import Encoded
from editors.solve.blocks import BATCHES_PER_FILE
from editors.solve.natural_gradient import NaturalGradient
from pipeline.domain.errors import IntegrityBroken, InvalidInput, Misconfigured
from pipeline.domain.formats.sizes import parse_size
from pipeline.domain.rank_api import EditorSettings
from pipeline.entrypoints.cli.app import app
from pipeline.entrypoints.console import ExitCode
from tests.support.ledger_parts import Rig, make_rig
from tests.support.tiny_editors import tiny_editor
from tests.support.tiny_families import ARCHITECTURES, pairs_of, tiny_module
from tests.support.tiny_lineage import edits
from tests.support.tiny_models import save_tiny_gpt2, save_tiny_llama
from workers.memory.plan import DEFAULT_CONFIG, EDIT, EDIT_IN_PARAM, MADE_TOGETHER, MemoryPlan, Work, main, plan_memory

INFRA = Path(__file__).parents[4] / "infra"
OFFLOAD = INFRA / "deepspeed" / "zero3-offload.json"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with tied embeddings and an MLP that is not square."""
    folder = tmp_path_factory.mktemp("base")
    save_tiny_llama(folder, mlp=24)
    return folder


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rig]:
    """A folder with a base, and what edits it."""
    folder = tmp_path_factory.mktemp("rig")
    return folder, make_rig(folder)


def saved(name: str, folder: Path) -> tuple[Path, Any]:
    """A tiny model of an architecture in a folder, and the module."""
    module, tokenizer = tiny_module(name)
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, module


def bytes_of(plan: MemoryPlan, part: str) -> tuple[int, int]:
    """Accelerator and host bytes of the one line that begins so."""
    (line,) = [line for line in plan.lines if line.part.startswith(part)]
    return line.accelerator_bytes, line.host_bytes


def zero_config(folder: Path, **changes: Any) -> Path:
    """The shipped configuration with some changes."""
    settings = json.loads(DEFAULT_CONFIG.read_text())
    settings["zero_optimization"] |= changes
    path = folder / "zero3.json"
    path.write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bert"])
def test_partitions_hold_every_parameter_and_little_else(name: str, tmp_path: Path) -> None:
    folder, module = saved(name, tmp_path)
    params = list(module.parameters())
    whole = sum(param.nbytes for param in params)
    found = [bytes_of(plan_memory(folder, num_ranks=ranks), "weights (partition)")[0] for ranks in (1, 2, 3)]
    assert found == [sum(p.flatten().chunk(ranks)[0].nbytes for p in params) for ranks in (1, 2, 3)]
    assert found[0] == whole
    assert found[0] > found[1] > found[2]
    for ranks, part in enumerate(found, start=1):
        assert whole <= ranks * part < whole + ranks * 4 * len(params)


def test_weights_of_half_the_width_take_half(base: Path, tmp_path: Path) -> None:
    config = json.loads((base / "config.json").read_text()) | {"dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    half, whole = (plan_memory(folder, num_ranks=1) for folder in (tmp_path, base))
    assert 2 * bytes_of(half, "weights (partition)")[0] == bytes_of(whole, "weights (partition)")[0]
    assert bytes_of(half, "solve: A") == bytes_of(whole, "solve: A")


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_the_solve_takes_what_a_ledger_and_a_prior_allocate(num_ranks: int, rig: tuple[Path, Rig]) -> None:
    folder, parts = rig
    settings = resolved(EditorSettings(prior_strength=1.0, num_passes=2), parts.model)
    ledger = deepcopy(parts.ledger)
    added = edits(4)
    ledger.commit(
        RecursiveEditor(settings)
        .edit(EditJob(model=parts.model, weights=parts.weights, ledger=ledger, added=added))
        .rows
    )
    names = parts.model.inner_param_names[::num_ranks]
    natural = NaturalGradient(ledger.prior, settings.damping)
    assert all(ledger.without().factor(name) for name in names)
    made = [ledger._matrices._gram(name) for name in names]
    sums = sum(tensor.untyped_storage().nbytes() for one in made for tensor in (one._square_II, one._diagonal_I))
    moments = [of[name] for of in (ledger.prior.moments, ledger.prior.gradient_moments) for name in names]
    rows = [of[name] for batch in ledger.batches for of in (batch.keys, batch.targets) for name in names]
    for name in names:
        natural(name, torch.ones(1, len(ledger.prior.gradient_moments[name])))
    plan = plan_memory(folder, num_ranks=num_ranks, work=Work(num_edits=len(added)))
    assert bytes_of(plan, "solve: A and its factor") == (0, sums)
    assert bytes_of(plan, "prior moments") == (0, sum(tensor.nbytes for tensor in moments))
    factors = sum(natural._factors[name].lower_II.nbytes for name in names)
    assert bytes_of(plan, "solve: factors of the natural") == (0, factors)
    assert 0 < sum(tensor.nbytes for tensor in rows) <= bytes_of(plan, "ledger rows")[1]


def test_a_subject_parameter_keeps_one_row_an_edit_without_frames(rig: tuple[Path, Rig]) -> None:
    folder, parts = rig
    settings = resolved(
        EditorSettings(prior_strength=1.0, num_passes=1, frames_per_pass=0, num_guards=0, rephrase_rows=0), parts.model
    )
    result = RecursiveEditor(settings).edit(
        EditJob(model=parts.model, weights=parts.weights, ledger=parts.ledger, added=edits(3))
    )
    (name,) = settings.subject_params
    kept = result.rows.keys[name].nbytes + result.rows.targets[name].nbytes
    more, fewer = (
        plan_memory(folder, num_ranks=9, work=Work(num_edits=count, num_frames=1, num_guards=0)) for count in (9, 6)
    )
    assert more.inner_params[0] == name
    known = 3 * (EDIT + EDIT_IN_PARAM * len(more.inner_params))
    assert bytes_of(more, "ledger rows")[1] - bytes_of(fewer, "ledger rows")[1] == kept + known


def test_an_edit_with_frames_has_no_more_rows_than_are_planned(rig: tuple[Path, Rig]) -> None:
    folder, parts = rig
    settings = resolved(EditorSettings(prior_strength=1.0, num_passes=1), parts.model)
    result = RecursiveEditor(settings).edit(
        EditJob(model=parts.model, weights=parts.weights, ledger=parts.ledger, added=edits(3))
    )
    kept = sum(of[name].nbytes for of in (result.rows.keys, result.rows.targets) for name in result.rows.keys)
    more, fewer = (plan_memory(folder, num_ranks=1, work=Work(num_edits=count)) for count in (9, 6))
    (name,) = settings.subject_params
    assert len(result.rows.keys[name]) > 3, "rows of several frames"
    assert kept <= bytes_of(more, "ledger rows")[1] - bytes_of(fewer, "ledger rows")[1]


def test_rows_that_are_on_disk_take_no_memory_but_what_is_known_of_their_edits(base: Path) -> None:
    work = Work(num_edits=BATCHES_PER_FILE * MADE_TOGETHER * Work().batch_size)
    newest = plan_memory(base, num_ranks=1, work=work)
    older = plan_memory(base, num_ranks=1, work=replace(work, num_edits=work.num_edits + 100_000))
    known = 100_000 * (EDIT + EDIT_IN_PARAM * len(newest.inner_params))
    assert bytes_of(older, "ledger rows")[1] - bytes_of(newest, "ledger rows")[1] == known


def test_summing_a_block_takes_more_than_factoring_once_there_are_edits(base: Path) -> None:
    none, some, many, more = (
        bytes_of(plan_memory(base, num_ranks=1, work=Work(num_edits=count)), "solve: one A")[1]
        for count in (0, 1, 10**5, 10**6)
    )
    assert none < some < many == more


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_pristine_slices_and_accumulators_are_those_of_the_inner_weights(num_ranks: int, base: Path) -> None:
    module = family_of("causal").loader.from_pretrained(base)
    slices = [module.get_parameter(p.name).flatten().chunk(num_ranks)[0] for p in inner_params(module)]
    expected = sum(part.nbytes + 2 * part.float().nbytes for part in slices)
    assert bytes_of(plan_memory(base, num_ranks=num_ranks), "pristine")[0] == expected


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "qwen3"])
def test_what_attention_keeps_of_beginnings_is_planned_for_as_many_tokens_as_there_may_be(
    name: str, tmp_path: Path
) -> None:
    folder, module = saved(name, tmp_path)
    first = [param.name for param in editable("causal", module, tiny_module(name)[1]).inner][:1]
    model = editable("causal", module, tiny_module(name)[1], first)
    sequence = Encoded(prompt_ids=(5, 6, 7, 8, 9), target_ids=(5,), subject_end=4)
    (begun,) = model.begun([sequence], [4], model.inner)
    assert begun is not None
    kept = sum(part.untyped_storage().nbytes() for pair in begun.kept for part in pair)
    of_a_token = kept / 4 / len(begun.kept) * module.config.num_hidden_layers
    assert bytes_of(plan_memory(folder, num_ranks=1), "beginnings")[0] == MOST_LEFT * of_a_token
    assert bytes_of(plan_memory(saved("bert", tmp_path / "bert")[0], num_ranks=1), "beginnings")[0] == 0


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "qwen3", "t5", "bert"])
def test_activations_cover_what_autograd_keeps_of_the_blocks(name: str, tmp_path: Path) -> None:
    folder, module = saved(name, tmp_path)
    model = editable(ARCHITECTURES[name].task, module, tiny_module(name)[1])
    batch = model.encode(pairs_of(model) * 8)
    weights = {param.untyped_storage().data_ptr() for param in module.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    places = {param.name: model.key_positions(batch, param, "answer") for param in model.inner}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), capturing(module, places):
        model.target_logits(batch)
    num_tokens = max(ids.numel() for ids in (batch.input_ids_BL, batch.decoder_ids_BM) if ids is not None)
    plan = plan_memory(folder, num_ranks=1, work=Work(num_tokens=num_tokens))
    planned = bytes_of(plan, "activations")[0] + bytes_of(plan, "logits")[0]
    assert planned / 5 < sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) < planned


def test_a_rank_alone_gathers_nothing_and_several_gather_more_the_more_may_live(base: Path, tmp_path: Path) -> None:
    module = family_of("causal").loader.from_pretrained(base)
    blocks = [sum(param.nbytes for param in block.parameters()) for block in module.model.layers]
    unit = max(*blocks, *(param.nbytes for param in module.parameters()))
    whole = sum(param.nbytes for param in module.parameters())
    usual = zero_config(tmp_path, stage3_prefetch_bucket_size=50_000_000, stage3_max_live_parameters=10**9)
    assert bytes_of(plan_memory(base, num_ranks=1), "weights gathered") == (0, 0)
    assert bytes_of(plan_memory(base, num_ranks=2), "weights gathered") == (unit, 0)
    assert bytes_of(plan_memory(base, num_ranks=2, config_path=usual), "weights gathered")[0] >= whole


def test_offloaded_weights_are_the_hosts_and_are_gathered_by_a_rank_alone_too(base: Path) -> None:
    plain, offloaded = plan_memory(base, num_ranks=1), plan_memory(base, num_ranks=1, config_path=OFFLOAD)
    assert (plain.is_offloaded, offloaded.is_offloaded) == (False, True)
    assert bytes_of(offloaded, "weights (partition)")[0] == 0
    assert bytes_of(offloaded, "weights (partition)")[1] >= bytes_of(plain, "weights (partition)")[0]
    assert bytes_of(offloaded, "pristine") == bytes_of(plain, "pristine")[::-1]
    assert bytes_of(offloaded, "weights gathered")[0] > 0


def test_ranks_without_an_accelerator_have_everything_on_the_host(base: Path) -> None:
    plan = plan_memory(base, num_ranks=2, has_accelerator=False)
    assert plan.accelerator_bytes == 0
    assert bytes_of(plan, "weights (partition)")[1] == bytes_of(plan_memory(base, num_ranks=2), "weights (part")[0]
    plan.require(plan.host_bytes)
    with pytest.raises(Misconfigured, match="host memory for each of 2 ranks"):
        plan.require(plan.host_bytes - 1)


def test_the_shipped_offload_differs_from_the_default_in_the_offload_only() -> None:
    plain, offload = (json.loads(path.read_text()) for path in (DEFAULT_CONFIG, OFFLOAD))
    assert offload["zero_optimization"].pop("offload_param") == {"device": "cpu", "pin_memory": True}
    assert offload == plain


def test_more_of_anything_never_needs_less(base: Path) -> None:
    usual = plan_memory(base, num_ranks=1)
    for more in (Work(batch_size=64), Work(num_edits=2000), Work(num_tokens=4096)):
        larger = plan_memory(base, num_ranks=1, work=more)
        assert (larger.accelerator_bytes, larger.host_bytes) > (usual.accelerator_bytes, usual.host_bytes)
        assert larger.host_bytes >= usual.host_bytes


def test_too_little_memory_is_refused_in_one_sentence_with_the_main_figures(base: Path) -> None:
    plan = plan_memory(base, num_ranks=2)
    plan.require(plan.accelerator_bytes, host_bytes=plan.host_bytes)
    with pytest.raises(Misconfigured) as refused:
        plan.require(512 * 2**20)
    said = str(refused.value)
    assert "\n" not in said
    for part in ("of accelerator memory for each of 2 ranks, got 536.87 MB", "float32", "the process itself 1.07 GB"):
        assert part in said
    fewer = f"{(plan.host_bytes - 10**4) / 10**6:.2f} MB"
    with pytest.raises(Misconfigured, match=f"of host memory for each of 2 ranks, got {fewer}"):
        plan.require(plan.accelerator_bytes, host_bytes=plan.host_bytes - 10**4)


def test_a_trained_editor_names_its_weights_and_takes_its_network(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "base", mlp=24)
    editor = tiny_editor(tmp_path / "base")
    editor.save(tmp_path / "editor")
    names = {name for stage in editor.card.stages for name in stage.inner_params}
    with_editor = plan_memory(tmp_path / "base", num_ranks=1, editor=tmp_path / "editor")
    without = plan_memory(tmp_path / "base", num_ranks=1, inner_param_names=sorted(names))
    network = sum(parameter.nbytes for parameter in editor.transform.parameters())
    assert set(with_editor.inner_params) == names
    # Without an editor no weight has subject rows: its candidate is larger by the rows that are answer tokens.
    assert network <= bytes_of(with_editor, "candidate")[0] <= bytes_of(without, "candidate")[0] + network


def test_an_editor_for_a_base_of_another_shape_is_refused(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "one", mlp=24)
    save_tiny_llama(tmp_path / "other", mlp=32)
    tiny_editor(tmp_path / "one").save(tmp_path / "editor")
    with pytest.raises(Misconfigured, match="the editor is for another base"):
        plan_memory(tmp_path / "other", num_ranks=1, editor=tmp_path / "editor")
    with pytest.raises(IntegrityBroken):
        plan_memory(tmp_path / "one", num_ranks=1, editor=tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "opt", "architectures": ["OPTForCausalLM"]}, "known inner parameters"),
        ({"model_type": "nonsense"}, "expected a causal model that transformers knows"),
        ({"architectures": []}, "expected --task"),
        ({"hidden_size": "wide"}, "expected a causal model that transformers knows"),
    ],
)
def test_a_config_that_says_too_little_is_one_sentence(
    changes: dict[str, Any], expected: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    assert main(["--model", str(tmp_path), "--ranks", "1", "--memory", "1GB"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith("Misconfigured: ")
    assert expected in said.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"inner_param_names": ["model.layers.9.mlp.down_proj.weight"]}, "which it does not have"),
        ({"inner_param_names": ["model.norm.weight"]}, "of a Linear or Conv1D"),
        ({"num_ranks": 0}, "expected at least one rank, got 0"),
        ({"task": "poet"}, "expected a base with task causal, seq2seq, classifier, got 'poet'"),
        ({"folder": Path("/nowhere")}, "expected a folder with a model, got /nowhere"),
        ({"folder": INFRA}, "expected the config of a model at"),
        ({"config_path": INFRA / "no.json"}, "expected a DeepSpeed configuration of ZeRO-3"),
        ({"config_path": INFRA / "compose.yaml"}, "expected a DeepSpeed configuration of ZeRO-3"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(wrong: dict[str, Any], expected: str, base: Path) -> None:
    arguments: dict[str, Any] = {"folder": base, "num_ranks": 1} | wrong
    with pytest.raises(Misconfigured) as refused:
        plan_memory(**arguments)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_offload_to_a_disk_is_not_planned_as_if_it_were_to_the_host(base: Path, tmp_path: Path) -> None:
    config = zero_config(tmp_path, offload_param={"device": "nvme", "nvme_path": str(tmp_path)})
    with pytest.raises(Misconfigured, match="offload_param to cpu or none"):
        plan_memory(base, num_ranks=1, config_path=config)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24GB", 24 * 10**9),
        ("512MiB", 2**29),
        ("1.5 gib", 3 * 2**29),
        ("80gb", 80 * 10**9),
        ("4096", 4096),
        ("7B", 7),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "much", "-1GB", "24 GiBs", "1e9", "GB", "0GB", "0.2B", "٢٤GB", "nan"])
def test_nonsense_is_no_size(text: str) -> None:
    with pytest.raises(InvalidInput, match="expected an amount of memory such as 24GB"):
        parse_size(text)


def corrigenda(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["lineage", "plan", *map(str, arguments)])


def test_the_command_shows_the_plan_and_says_that_it_fits(tmp_path: Path) -> None:
    save_tiny_gpt2(tmp_path)
    result = corrigenda("--model", tmp_path, "--ranks", 2, "--memory", "24GB", "--offload")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["one", "rank", "needs", "accelerator", "host"]
    assert lines[-2].startswith("together")
    assert lines[-1].startswith("it fits: a float32 base of")
    assert "of 24.00 GB on each accelerator" in lines[-1]


def test_the_command_refuses_what_does_not_fit_and_still_gives_the_figures(base: Path) -> None:
    result = corrigenda("--model", base, "--ranks", 1, "--memory", "512MiB", "--cpu", "--json")
    assert result.exit_code == ExitCode.misconfigured
    plan = json.loads(result.stdout)
    assert sum(line["host_bytes"] for line in plan["lines"]) == plan["host_bytes"] > 2**29
    assert result.stderr.strip() == f"corrigenda: {plan['refusal']}"


@pytest.mark.parametrize(
    ("wrong", "kind", "expected"),
    [
        ("--ranks 0", "InvalidInput", "expected --ranks of at least 1, got 0"),
        ("--tokens -5", "InvalidInput", "expected --tokens of at least 1, got -5"),
        ("--memory lots", "InvalidInput", "expected an amount of memory such as 24GB"),
        ("--host-memory 3XB", "InvalidInput", "expected an amount of memory such as 24GB"),
        ("--editor . --inner-param a.weight", "InvalidInput", "got both"),
        ("--model /nowhere", "Misconfigured", "expected a folder with a model, got /nowhere"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    wrong: str, kind: str, expected: str, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(base), "--ranks", "1", "--memory", "1GB", *wrong.split()]) == 1
    said = capsys.readouterr()
    (line,) = said.err.strip().splitlines()
    assert line.startswith(f"{kind}: ")
    assert expected in line
    assert said.out == ""


def test_a_wrong_command_line_is_wrong_input_of_the_command(base: Path) -> None:
    result = corrigenda("--model", base, "--ranks", 0, "--memory", "1GB")
    assert result.exit_code == ExitCode.usage
    assert result.stderr.strip() == "corrigenda: expected --ranks of at least 1, got 0"
    assert result.stdout == ""
