"""What a lineage starts with: a base model that is measured once, and the record of the lineage on it.

`editors.prepare` measures in a process of its own; nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from infra.local.base_model import cache_folder, ensure_base_model
from pipeline.bootstrap import Stores
from pipeline.domain.formats.canonical import sha256_text
from pipeline.domain.gates import GatePolicy
from pipeline.domain.lineages import Lineage, NewLineage, TrainedArtifacts
from pipeline.domain.rank_api import BaseSpec, EditorSettings
from pipeline.domain.review.policies import ApprovalPolicy
from pipeline.entrypoints.children import run_module
from pipeline.entrypoints.local_settings import cli_actor

DEFAULT_FACTS = Path(__file__).resolve().parents[2] / "infra" / "local" / "facts"


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedEditor:
    """A trained editor that was found fit for the base."""

    name: str
    """Name of its folder."""
    card: Path
    """Its card: the base and the weights it is for."""
    tensors: Path
    """Its network, safetensors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What a lineage needs of its base."""

    base: BaseSpec
    """Folder, digest and task."""
    editor: EditorSettings
    """How it is to be edited: which weights, and what a trained editor asks for."""
    prior: Path
    """Statistics of the keys."""
    reference: Path
    """What the base answers."""
    trained: PreparedEditor | None
    """The trained editor; None where the gradient is asked."""


def prepare_base(
    model: Path | None,
    *,
    suite: Path,
    text: Path,
    prior_text: Sequence[Path],
    inner_params: tuple[str, ...] = (),
    task: str | None = None,
    editor: str | None = None,
) -> Prepared:
    """Measure a base, or find what was measured before with the same inputs.

    Args:
        model: folder of the base; the embedded one if None.
        suite: locality suite, JSON lines.
        text: plain text for perplexity.
        prior_text: what the prior is measured over: other text, a sentence a line, or files of edits.
        inner_params: weights to edit; those of the editor, or the architecture's default, when empty.
        task: of the base; what its config declares if None.
        editor: folder of a trained editor, or `none`; if None the one that ships for the base and knows frames, if any.

    Raises:
        Misconfigured: if the model, a file or the editor cannot be used.
        WrongBase: if the editor is for another base.
        IntegrityBroken: if the editor is damaged.
    """
    folder = (model or ensure_base_model()).absolute()
    asked = [str(path.absolute()) for path in (folder, suite, text)]
    chosen = [part for path in prior_text for part in ("--prior-text", str(path.absolute()))]
    chosen += [part for name in inner_params for part in ("--inner-param", name)]
    chosen += ["--task", task] if task else []
    chosen += ["--editor", editor if editor == "none" else str(Path(editor).absolute())] if editor else []
    out = cache_folder() / "lineages" / sha256_text("\n".join([*asked, *chosen]))[:16]
    files = ["--model", asked[0], "--suite", asked[1], "--text", asked[2]]
    run_module("editors.prepare", *files, "--out", str(out), *chosen)
    return _prepared(folder, out)


def make_lineage(
    kept: Stores,
    name: str,
    prepared: Prepared,
    *,
    batch_size: int | None,
    change_bound: float | None = None,
    policy: GatePolicy,
    approval_policy: ApprovalPolicy | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Lineage:
    """Record a lineage on a prepared base; a batch holds what the editor's card says if `batch_size` is None.

    Args:
        kept: the stores.
        name: of the lineage.
        prepared: its base, and what was measured of it.
        batch_size: most edits in a batch.
        change_bound: most that a batch may change a weight by, see `EditorSettings`; the editor's own if None.
        policy: what its snapshots have to show.
        approval_policy: whose decisions it takes; the usual one if None.
        origin: which lineage was folded into the base, if one was.
    """
    new = NewLineage(
        name=name,
        base=prepared.base,
        editor=replace(
            prepared.editor,
            batch_size=batch_size or prepared.editor.batch_size,
            change_bound=prepared.editor.change_bound if change_bound is None else change_bound,
        ),
        policy=policy,
        approval_policy=approval_policy or ApprovalPolicy(),
        prior=kept.artifacts.put(prepared.prior),
        reference=kept.artifacts.put(prepared.reference),
        trained=_stored(kept, prepared.trained) if prepared.trained else None,
    )
    return kept.lineages.create(new, actor=cli_actor(), origin=origin)


def _stored(kept: Stores, trained: PreparedEditor) -> TrainedArtifacts:
    card, tensors = kept.artifacts.put(trained.card), kept.artifacts.put(trained.tensors)
    return TrainedArtifacts(name=trained.name, card=card, tensors=tensors)


def _prepared(folder: Path, out: Path) -> Prepared:
    found = json.loads((out / "lineage.json").read_text(encoding="utf-8"))
    return Prepared(
        base=BaseSpec(ref=str(folder), digest=found["base_digest"], task=found["task"]),
        editor=EditorSettings.from_stored(found["editor"]),
        prior=out / "prior.safetensors",
        reference=out / "baseline.json",
        trained=_trained(found["trained"], out) if found["trained"] else None,
    )


def _trained(files: dict[str, Any], out: Path) -> PreparedEditor:
    return PreparedEditor(name=files["name"], card=out / files["card"], tensors=out / files["tensors"])
