"""What a base on ranks costs in seconds and memory: a load, a batch with its gates, a swap; against a whole base.

`python -m tests.benchmarks.sharded_at_scale --ranks 1 --ranks 2` measures the embedded base on this machine,
corrections and the gradient as editor, and prints a line of JSON for each number of ranks. tests/gpu does the same with
billions of random weights.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from editors.measure.losses import Reading
from editors.measure.quality import Figure
from editors.measure.reference import Reference, SuiteAnswer
from editors.measure.scorer import Scorer
from editors.methods.base import EditJob
from editors.methods.select import editor_for
from editors.models.digest import base_digest
from editors.models.tokens import Encoded, encode_prompt
from editors.solve.ledger import Ledger
from editors.solve.prior import Prior
from editors.weights.deltas import PlainWeights, load_accumulators
from editors.weights.loading import load_base
from pipeline.domain.contract.wire import parse_object
from pipeline.domain.edits import Edit, Probe
from pipeline.domain.rank_api import BaseSpec, EditorSettings, LedgerPlan, LoadPlan, SuiteProbe
from pipeline.entrypoints.preparation import DEFAULT_FACTS, prepare_base
from tests.support.factories import make_edit
from tests.support.tiny_lineage import candidate, file_ref, plan_after
from tests.support.tiny_models import tiny_tokenizer
from workers.controller.group import RankGroup
from workers.controller.rank_processes import RankSpec

TIMEOUT = timedelta(hours=1)
FILE_BLOCKS = 8
"""Blocks in a safetensors file of random weights."""
SUITE_SIZE = 32
"""Probes of a random base's locality suite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What some ranks took."""

    num_ranks: int
    """How many."""
    load_seconds: float
    """From ranks that have imported everything to the base of a lineage, digest included."""
    loaded_bytes: tuple[int | None, ...]
    """The most that each rank held until then."""
    batch_seconds: float
    """Editing the batch, all passes; nothing of the gates."""
    trial_seconds: float
    """A whole candidate: editing, gates, and going back."""
    num_passes: int
    """Of the batch."""
    keep_seconds: float
    """Keeping it, files included."""
    swap_seconds: float
    """To another snapshot of the lineage."""
    lineage_seconds: float
    """To another lineage of the same base: its prior, reference and rows are read, the base is not."""
    peak_bytes: tuple[int | None, ...]
    """The most that each rank held at the end."""
    edit_success: float
    """Of the edits."""
    distance: float | None = None
    """Of the edited weights from those that one process makes of the same batch, relative (Frobenius), the largest."""


def embedded_plan(*, editor: str = "none") -> LoadPlan:
    """A lineage without a snapshot on the embedded base, as the demo makes it."""
    facts = DEFAULT_FACTS
    found = prepare_base(
        None,
        suite=facts / "suite.jsonl",
        text=facts / "perplexity.txt",
        prior_text=[facts / "prior.txt"],
        editor=editor,
    )
    return _plan(found.base, found.editor, found.prior, found.reference)


def demo_edits(count: int) -> tuple[Edit, ...]:
    """The demo's corrections, in order, each of a fact of its own."""
    lines = (DEFAULT_FACTS / "corrections.jsonl").read_text(encoding="utf-8").splitlines()
    requests = [parse_object({"lineage": "demo"} | json.loads(line)) for line in lines]
    edits = {one.conflict_key: Edit(edit_id=one.request_id, request=one) for one in requests}
    return tuple(edits.values())[:count]


def random_plan(config: LlamaConfig, folder: Path, *, dtype: torch.dtype, device: str) -> LoadPlan:
    """A lineage on a Llama of random weights, which are written file by file; prior and reference are made up."""
    base = folder / "base"
    base.mkdir(parents=True)
    _write_random(config, base, dtype=dtype, device=device)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(base)
    middle = config.num_hidden_layers // 2
    names = tuple(f"model.layers.{block}.mlp.down_proj.weight" for block in range(middle, middle + 3))
    keys, outputs = (torch.eye(size) for size in (config.intermediate_size, config.hidden_size))
    prior = Prior(
        moments={name: keys.clone() for name in names},
        gradient_moments={name: outputs.clone() for name in names},
        num_tokens=1,
    )
    prior.save(folder / "prior.safetensors")
    _made_up_reference(tokenizer).save(folder / "baseline.json")
    settings = EditorSettings(inner_params=names, subject_params=names, prior_strength=1.0, num_passes=3)
    spec = BaseSpec(ref=str(base), digest=base_digest(base), task="causal")
    return _plan(spec, settings, folder / "prior.safetensors", folder / "baseline.json")


def word_edits(count: int) -> tuple[Edit, ...]:
    """Edits in the words of the tiny tokenizer."""
    words = ("Japan", "France", "Italy", "Germany", "Spain")
    cities = ("Kyoto", "Lyon", "Milan", "Bonn", "Paris")
    return tuple(
        make_edit(
            f"word-{place}",
            prompt=f"the capital of {words[place % 5]} is {' '.join(['the'] * (place // 5))}".strip(),
            target_new=cities[(place + 1) % 5],
            subject=words[place % 5],
            relation=f"capital {place}",
        )
        for place in range(count)
    )


def cost_on_ranks(
    plan: LoadPlan, edits: Sequence[Edit], num_ranks: int, folder: Path, *, config: Path | None = None
) -> Cost:
    """Load, edit, keep, swap. The accumulators of the kept candidate are left in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = RankSpec(num_ranks=num_ranks, deepspeed_config=config, log=folder / "ranks.log")
    with RankGroup(spec, command_timeout=TIMEOUT) as group:
        group.peak_bytes()  # answers once everything is imported
        load_seconds = _timed(lambda: group.load(plan, epoch=1))
        loaded = group.peak_bytes()
        began = time.perf_counter()
        outcome = group.try_edits(candidate("t", tuple(edits)))
        trial_seconds = time.perf_counter() - began
        began = time.perf_counter()
        kept = group.keep("t", folder=folder, with_accumulator=True)
        keep_seconds = time.perf_counter() - began
        after = plan_after(plan, kept, "s1", tuple(edits))
        group.held("s1", digest=after.digest)
        group.load(plan, epoch=1)
        swap_seconds = _timed(lambda: group.load(after, epoch=1))
        lineage_seconds = _timed(lambda: group.load(replace(plan, lineage="another"), epoch=1))
        scores = outcome.measurements.edits
        return Cost(
            num_ranks=num_ranks,
            load_seconds=load_seconds,
            loaded_bytes=loaded,
            batch_seconds=sum(outcome.seconds[name] for name in ("capture", "solve", "apply")),
            trial_seconds=trial_seconds,
            num_passes=outcome.num_passes,
            keep_seconds=keep_seconds,
            swap_seconds=swap_seconds,
            lineage_seconds=lineage_seconds,
            peak_bytes=group.peak_bytes(),
            edit_success=sum(score.edit_success for score in scores) / len(scores),
        )


def cost_whole(plan: LoadPlan, edits: Sequence[Edit]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Seconds of the same batch and the same candidate in this process, without DeepSpeed, and the shifts it makes."""
    loaded = load_base(Path(plan.base.ref), plan.editor.inner_params, task=plan.base.task)
    weights = PlainWeights(loaded.module, loaded.inner)
    assert plan.ledger is not None
    ledger = Ledger.from_files(plan.ledger.prior, (), strength=plan.editor.prior_strength, ridge=plan.editor.ridge)
    scorer = Scorer(loaded, weights, Reference.load(Path(plan.ledger.reference.path)))
    began = time.perf_counter()
    result = editor_for(plan.editor).edit(EditJob(model=loaded, weights=weights, ledger=ledger, added=edits))
    scorer.observe_parent(edits, ())
    applying = time.perf_counter()
    weights.apply(result.delta)
    applied = time.perf_counter() - applying
    scorer.measure(added=edits, retained=(), gone_keys=(), delta=result.delta)
    seconds = {
        "batch": result.seconds["capture"] + result.seconds["solve"] + applied,
        "candidate": time.perf_counter() - began,
    }
    return seconds, {name: weights.shift(name) for name in loaded.inner_param_names}


def distance(plan: LoadPlan, folder: Path, shifts: dict[str, torch.Tensor]) -> float:
    """Of edited weights, relative: those whose accumulators lie in a folder from those with these shifts."""
    found = load_accumulators(folder / "accumulator.safetensors")
    model = load_base(Path(plan.base.ref), plan.editor.inner_params, task=plan.base.task)
    worst = 0.0
    for param in model.inner:
        weight, shift = model.module.get_parameter(param.name).detach(), shifts[param.name]
        edited = weight + (shift if param.fan_in_fan_out else shift.T)
        worst = max(worst, float((found[param.name] - shift).double().norm() / edited.double().norm()))
    return worst


def _plan(base: BaseSpec, editor: EditorSettings, prior: Path, reference: Path) -> LoadPlan:
    return LoadPlan(
        base=base,
        lineage="scale",
        editor=editor,
        snapshot_id=None,
        digest=base.digest,
        accumulator=None,
        deltas=(),
        ledger=LedgerPlan(rows=(), prior=file_ref(prior), reference=file_ref(reference)),
    )


def _write_random(config: LlamaConfig, folder: Path, *, dtype: torch.dtype, device: str) -> None:
    """Weights of the right names and shapes, a few blocks a file, never all of them at once."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in LlamaForCausalLM(config).state_dict().items()}
    config.save_pretrained(folder)
    generator = torch.Generator(device).manual_seed(0)
    files: dict[str, dict[str, torch.Size]] = {}
    for name, shape in shapes.items():
        block = int(name.split(".")[2]) // FILE_BLOCKS if name.startswith("model.layers.") else -1
        files.setdefault(f"model-{block + 2:05}.safetensors", {})[name] = shape
    for file, part in files.items():
        tensors = {
            name: torch.ones(shape, dtype=dtype)
            if len(shape) == 1
            else torch.empty(shape, dtype=dtype, device=device).normal_(std=0.02, generator=generator).cpu()
            for name, shape in part.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _made_up_reference(tokenizer: Any) -> Reference:
    """A suite whose answers nobody gave: what asking it costs is real, what comes of it is not."""
    prompt, answer = (encode_prompt(tokenizer, text) for text in ("the language spoken in Japan is", "Paris"))
    uniform = torch.full((1, len(tokenizer)), 1.0 / len(tokenizer)).log()
    reading = Reading(
        argmax_T=torch.zeros(1, dtype=torch.long),
        top_TK=torch.arange(len(tokenizer))[None],
        log_top_TK=uniform,
        log_rest_T=torch.full((1,), -20.0),
    )
    probe = SuiteProbe(probe=Probe(prompt="the language spoken in Japan is", target=None), subject=None, relation=None)
    one = SuiteAnswer(probe=probe, sequence=Encoded(prompt_ids=prompt, target_ids=answer[-1:]), reading=reading)
    return Reference(suite=(one,) * SUITE_SIZE, quality_probes=(), scores=(), figure=Figure())


def _timed(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Measure the embedded base."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.sharded_at_scale", description=__doc__)
    parser.add_argument("--ranks", type=int, action="append", required=True, help="may be repeated")
    parser.add_argument("--edits", type=int, default=24, help="of the batch")
    parser.add_argument("--deepspeed-config", type=Path, help="DeepSpeed JSON")
    given = parser.parse_args()
    plan, edits = embedded_plan(), demo_edits(given.edits)
    seconds, shifts = cost_whole(plan, edits)
    print(json.dumps({"whole": seconds}), flush=True)
    for num_ranks in given.ranks:
        with tempfile.TemporaryDirectory() as name:
            cost = cost_on_ranks(plan, edits, num_ranks, Path(name), config=given.deepspeed_config)
            cost = replace(cost, distance=distance(plan, Path(name), shifts))
        print(json.dumps(asdict(cost)), flush=True)


if __name__ == "__main__":
    main()
