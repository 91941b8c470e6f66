"""One rank of a test: an episode and a validation of training on sharded tiny models, against the unsharded ones.

Takes the runs as a list of [folder, task, solver]; returns a list with what was found of each. Run by
test_sharded_training.py with `run_ranks`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import torch
from torch import Tensor, nn

from editors.mend.transform import MendTransform, ShapeNetwork, Statistics, shapes_of
from editors.models.families import EditableModel, editable, family_of
from editors.models.inner_params import inner_params
from editors.solve.ledger import Ledger
from editors.solve.natural_gradient import NaturalGradient
from editors.solve.prior import Prior, measure_prior
from editors.training.examples import Examples, make_examples
from editors.training.framed_examples import make_framed_examples
from editors.training.framed_objective import FramedObjective, FramedSettings
from editors.training.mend_objective import MendObjective, MendObjectiveSettings
from editors.training.objective import Objective
from editors.training.solved_objective import SolvedObjective, SolvedSettings
from pipeline.domain.edits import Edit, Probe
from pipeline.domain.rank_api import BaseSpec, EditorSettings
from tests.support.tiny_lineage import TEXT, edits
from workers.rank.rank_comm import RankComm
from workers.rank.sharded_model import join_group, load_sharded


def main(runs: Sequence[tuple[str, str, str]]) -> list[dict[str, Any]]:
    modules = [family_of(task).loader.from_pretrained(folder, dtype=torch.float32) for folder, task, _ in runs]
    join_group()  # from here on transformers shards whatever it loads
    comm = RankComm()
    return [found_of(module, *run, comm=comm) for module, run in zip(modules, runs, strict=True)]


def found_of(module: nn.Module, folder: str, task: str, kind: str, *, comm: RankComm) -> dict[str, Any]:
    sharded = load_sharded(BaseSpec(ref=folder, digest="", task=task), dtype=torch.float32)
    # The first of them: it has one row a subject, and what a subject's token gets in the last block reaches no answer.
    names = [next(param.name for param in inner_params(module) if param.block == 1)]
    plain = editable(task, module, sharded.tokenizer, names)
    model = editable(task, sharded.module, sharded.tokenizer, names, comm=comm)
    prior = measure_prior(plain, TEXT.split(" . "))
    parameters: list[Any] = list(sharded.module.parameters())
    before, parts = checksum(plain), [parameter.ds_tensor.clone() for parameter in parameters]
    found = [trained(one, kind, prior) for one in (plain, model)]
    assert checksum(plain) == before, "training wrote weights"
    for parameter, part in zip(parameters, parts, strict=True):
        now, was = (one.view(torch.uint8) for one in (parameter.ds_tensor, part))  # padding may be no number
        assert torch.equal(now, was), "training wrote a shard"
    (figures, gradients, checks), (own_figures, own_gradients, own_checks) = found
    return {
        "figures": largest(figures, own_figures),
        "validation": largest(checks, own_checks),
        # Of all parameters together: a learned rate is one number, whose terms nearly cancel.
        "gradients": distance(flat(gradients), flat(own_gradients)),
        "has_gradients": bool(gradients[0].any()) and bool(gradients[-1].any()),
        "ranks": comm.gathered([gradient.double().sum().item() for gradient in own_gradients]),
    }


def trained(model: EditableModel, kind: str, prior: Prior) -> tuple[dict[str, float], list[Tensor], dict[str, float]]:
    """Figures and gradients of two episodes, and of a validation."""
    objective = objective_of(model, kind, prior)
    objective.begin()
    figures: dict[str, float] = {}
    for step in range(2):
        losses = objective.episode(step, random.Random(step))  # noqa: S311
        losses.total.backward()
        figures |= {f"{step} {name}": value for name, value in losses.parts.items()}
    gradients = [parameter.grad for group in objective.groups() for parameter in group["params"]]
    assert all(gradient is not None for gradient in gradients)
    return figures, [gradient for gradient in gradients if gradient is not None], objective.validate()


def objective_of(model: EditableModel, kind: str, prior: Prior) -> Objective:
    """The objective that a solver is trained by."""
    statistics: Statistics = "shape" if kind == "sum" else "token"
    transform = MendTransform(shapes_of(model.inner), rank=4, statistics=statistics, stop_probability=0.9)
    for network in transform.networks.values():
        assert isinstance(network, ShapeNetwork)
        torch.nn.init.normal_(network.first.left_DR, std=0.1, generator=torch.Generator().manual_seed(1))
    if kind == "framed":
        return framed_objective(model, transform, prior)
    examples = examples_of(model, has_subjects=kind != "sum")
    if kind == "sum":
        return MendObjective(model, transform, examples, MendObjectiveSettings(batch=2, first_step=0.2))
    ledger = Ledger(prior, strength=1.0, ridge=1e-3)
    settings = SolvedSettings(batch=2, share_edited=1.0, num_text=1)
    return SolvedObjective(model, model.inner, transform, examples, ledger, NaturalGradient(prior, 0.02), settings)


def framed_objective(model: EditableModel, transform: MendTransform, prior: Prior) -> FramedObjective:
    """Two passes over edits with frames, in a stream."""
    names, asked = model.inner_param_names, [with_company(edit) for edit in edits(5, task=model.task)]
    use = EditorSettings(subject_params=names, num_guards=0, num_passes=2, trained_passes=2, stop_probability=0.9)
    examples = make_framed_examples(model, asked[:4], asked[4:], TEXT, use=use, num_held_out=1)
    settings = FramedSettings(batch=2, share_edited=1.0, num_text=1)
    ledger, natural = Ledger(prior, strength=1.0, ridge=1e-3), NaturalGradient(prior, 0.02)
    return FramedObjective(model, transform, examples, ledger, natural, use, settings)


def examples_of(model: EditableModel, *, has_subjects: bool) -> Examples:
    """Four edits to learn from, one to validate on: an odd number of sequences for every number of ranks."""
    asked = [with_company(edit) for edit in edits(5, task=model.task)]
    return make_examples(model, asked[:4], asked[4:], TEXT, num_held_out=1, has_subjects=has_subjects)


def with_company(edit: Edit) -> Edit:
    """With a rephrase, and a neighbour whose answer has to stay."""
    request = edit.request
    neighbour = Probe(prompt=f"the river of {request.subject} is", target=request.target_new)
    return replace(
        edit,
        request=replace(
            request, rephrases=(f"who is president and what capital has {request.subject}",), locality=(neighbour,)
        ),
    )


def largest(one: dict[str, float], other: dict[str, float]) -> float:
    """The largest difference of two sets of figures, relative to what is above 1."""
    assert one.keys() == other.keys()
    return max(abs(value - other[name]) / max(abs(value), 1.0) for name, value in one.items())


def distance(one: Tensor, other: Tensor) -> float:
    """Relative (Frobenius)."""
    return float((one - other).norm() / one.norm().clamp(min=1e-12))


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def checksum(model: EditableModel) -> float:
    return float(sum(parameter.double().sum() for parameter in model.module.parameters()))
