"""Has a base model measured once for a lineage. Never imports torch: `editors.prepare` runs in its own process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from infra.local.base_model import cache_folder, ensure_base_model
from pipeline.domain.canonical import sha256_text
from pipeline.domain.trials import BaseSpec
from pipeline.entrypoints.children import run_module

DEFAULT_FACTS = Path(__file__).resolve().parents[2] / "infra" / "local" / "facts"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What a lineage needs of its base."""

    base: BaseSpec
    """Folder, digest and task."""
    inner_params: tuple[str, ...]
    """Names of the weights to edit."""
    subject_params: tuple[str, ...]
    """Those of them whose edit rows are subject tokens."""
    prior: Path
    """Statistics of the keys."""
    baseline: Path
    """What the base answers."""


def prepare_base(
    model: Path | None, *, suite: Path, text: Path, prior_text: Path, inner_params: tuple[str, ...] = ()
) -> Prepared:
    """Measure a base, or find what was measured before with the same inputs.

    Raises:
        Misconfigured: if the model or a file cannot be used.
    """
    folder = (model or ensure_base_model()).absolute()
    asked = [str(path.absolute()) for path in (folder, suite, text, prior_text)]
    out = cache_folder() / "lineages" / sha256_text("\n".join([*asked, *inner_params]))[:16]
    chosen = [part for name in inner_params for part in ("--inner-param", name)]
    files = ["--model", asked[0], "--suite", asked[1], "--text", asked[2], "--prior-text", asked[3]]
    run_module("editors.prepare", *files, "--out", str(out), *chosen)
    return _prepared(folder, out)


def _prepared(folder: Path, out: Path) -> Prepared:
    found = json.loads((out / "lineage.json").read_text(encoding="utf-8"))
    return Prepared(
        base=BaseSpec(ref=str(folder), digest=found["base_digest"], task=found.get("task", "causal")),
        inner_params=tuple(found["inner_params"]),
        subject_params=tuple(found["subject_params"]),
        prior=out / "prior.safetensors",
        baseline=out / "baseline.json",
    )
