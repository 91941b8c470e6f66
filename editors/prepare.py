"""Measures a base model once for a lineage: `python -m editors.prepare --help`. Knows no service.

What was measured is kept by the content of what went in (model, suite, texts, inner parameters), so that the same
question is answered from the cache, without torch, in about a second.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editors.datasets import read_suite, read_text
from editors.fingerprint import base_digest
from pipeline.domain.canonical import canonical_json, sha256_file, sha256_json
from pipeline.domain.errors import CorrigendaError, Misconfigured

__all__ = ["Inputs", "base_digest", "prepare"]

FORMAT = 5
"""Raised when what is measured changes, so that older results are not taken for it."""
FILES = ("prior.safetensors", "baseline.json", "lineage.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What a lineage is made from."""

    model: Path
    """Folder of the base."""
    suite: Path
    """Locality suite, JSON lines."""
    text: Path
    """Plain text for perplexity; not read where the task has none on text."""
    prior_text: Path
    """Other plain text, a sentence a line, for the preservation prior."""
    inner_params: tuple[str, ...] = ()
    """Weights to edit; the architecture's default when empty."""
    subject_params: tuple[str, ...] = ()
    """Those of them whose edit rows are subject tokens."""
    task: str = "causal"
    """Of the base: `causal`, `seq2seq` or `classifier`."""

    def key(self, digest: str) -> str:
        """Names what is measured, by content."""
        for path in (self.suite, self.text, self.prior_text):
            if not path.is_file():
                raise Misconfigured(f"expected a file, got {path}")
        texts = [sha256_file(path) for path in (self.suite, self.text, self.prior_text)]
        return sha256_json([FORMAT, self.task, digest, *texts, list(self.inner_params), list(self.subject_params)])


def prepare(inputs: Inputs, out: Path) -> dict[str, Any]:
    """Fill a folder with `prior.safetensors`, `baseline.json` and `lineage.json`; returns what the last one says.

    Raises:
        Misconfigured: if the model or a file cannot be used.
    """
    digest = base_digest(inputs.model)
    kept = _cache_folder() / inputs.key(digest)
    if not (kept / "lineage.json").is_file():
        _say(f"measuring the base model in {inputs.model}")
        _fill(kept, inputs, digest)
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        _copy(kept / name, out / name)
    lineage: dict[str, Any] = json.loads((out / "lineage.json").read_text(encoding="utf-8"))
    return lineage


def _fill(kept: Path, inputs: Inputs, digest: str) -> None:
    """Measure beside the cache's entry, which appears by a rename: nobody sees half of it."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=".", dir=kept.parent))
    try:
        _measure(workspace, inputs, digest)
        try:
            workspace.rename(kept)
        except OSError:
            if not (kept / "lineage.json").is_file():  # somebody else was faster otherwise
                raise
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _measure(folder: Path, inputs: Inputs, digest: str) -> None:
    from editors.baseline import build_baseline
    from editors.inner_params import default_subject_params
    from editors.loading import load_base
    from editors.prior import measure_prior

    suite, text = read_suite(inputs.suite), read_text(inputs.text)
    prior_lines = read_text(inputs.prior_text).splitlines()
    model = load_base(inputs.model, inputs.inner_params, task=inputs.task)
    _say(f"keys of {', '.join(model.inner_param_names)} over plain text")
    prior = measure_prior(model, prior_lines).save(folder / "prior.safetensors")
    _say(f"the base's answers to {len(suite)} probes")
    baseline = build_baseline(model, suite, text)
    lineage = {
        "format": FORMAT,
        "task": inputs.task,
        "base_digest": digest,
        "inner_params": list(model.inner_param_names),
        "subject_params": list(inputs.subject_params if inputs.inner_params else default_subject_params(model.module)),
        "prior": {"file": "prior.safetensors", "digest": prior},
        "baseline": {"file": "baseline.json", "digest": baseline.save(folder / "baseline.json")},
        "perplexity": baseline.figure.perplexity,
        "accuracy": baseline.figure.accuracy,
    }
    (folder / "lineage.json").write_text(canonical_json(lineage), encoding="utf-8")


def _cache_folder() -> Path:
    chosen = os.environ.get("CORRIGENDA_CACHE")
    if chosen:
        return Path(chosen).expanduser() / "prepared"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "corrigenda" / "prepared"


def _copy(source: Path, target: Path) -> None:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    shutil.copyfile(source, name)
    os.chmod(name, 0o644)
    os.replace(name, target)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare a lineage's files and print `lineage.json`; one sentence and exit status 1 when it cannot."""
    parser = argparse.ArgumentParser(prog="python -m editors.prepare", description=main.__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--suite", type=Path, required=True, help="locality suite, JSON lines")
    parser.add_argument("--text", type=Path, required=True, help="plain text for perplexity")
    parser.add_argument("--prior-text", type=Path, required=True, help="other plain text, a sentence a line")
    parser.add_argument("--task", default="causal", help="causal (default), seq2seq or classifier")
    parser.add_argument("--inner-param", action="append", default=[], help="a weight to edit; may be repeated")
    parser.add_argument("--subject-param", action="append", default=[], help="an --inner-param with subject rows")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    given = parser.parse_args(arguments)
    inputs = Inputs(
        model=given.model,
        suite=given.suite,
        text=given.text,
        prior_text=given.prior_text,
        inner_params=tuple(given.inner_param),
        subject_params=tuple(given.subject_param),
        task=given.task,
    )
    try:
        lineage = prepare(inputs, given.out)
    except CorrigendaError as error:
        _say(f"{type(error).__name__}: {' '.join(str(error).split())}")
        return 1
    except OSError as error:
        _say(f"{Misconfigured.__name__}: {' '.join(str(error).split())}")
        return 1
    print(json.dumps(lineage))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
