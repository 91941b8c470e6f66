"""Measure a base model once for a lineage: `python -m editors.prepare --help`. No service has to run.

Results are kept under a digest of everything that they depend on: model, suite, texts, inner parameters. Asked again
for the same, the program answers from this cache in about a second, without torch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from editors.data.atomic_files import write_atomically
from editors.data.datasets import prior_lines, prior_subjects, read_suite, read_text
from editors.data.folded_facts import FACTS, folded_probes
from editors.mend.shipped import CARD, shipped_editor
from editors.methods.options import add_base_options, add_prior_option, add_weight_options
from editors.models.declared_task import declared_task
from editors.models.digest import base_digest
from pipeline.domain.errors import CorrigendaError, Misconfigured, one_line
from pipeline.domain.formats.canonical import canonical_json, sha256_file, sha256_json
from pipeline.domain.rank_api import EditorSettings

__all__ = ["Inputs", "base_digest", "prepare"]

FORMAT = 8
"""Raised when what is measured changes, so that older results are not taken for it."""
FILES = ("prior.safetensors", "baseline.json", "lineage.json")
RUN_FOLDERS = ("best", "last")
"""Folders in which a training run leaves its editors; as names of editors they would say nothing."""
NO_EDITOR = "none"
"""Value of `--editor` for no trained editor: the natural gradient alone."""
EDITOR_FOLDER = "editor"
"""Folder beside the results for the files of the lineage's editor, as they were checked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What a lineage is prepared from."""

    model: Path
    """Folder of the base model."""
    suite: Path
    """Locality suite as JSON lines; see `read_suite`."""
    text: Path
    """Plain text that perplexity is measured on, where the task has a perplexity."""
    prior_text: tuple[Path, ...]
    """Files that the prior is measured over, with equal weight: text with a sentence a line, or files of edits."""
    inner_params: tuple[str, ...] = ()
    """Names of the weights to edit; the architecture's defaults when empty."""
    subject_params: tuple[str, ...] = ()
    """Names of those weights whose edit rows are subject tokens."""
    task: str = ""
    """Task of the base, `causal`, `seq2seq` or `classifier`; what its config declares when empty."""
    editor: str = ""
    """Folder of a trained editor, or `none`; when empty the one that ships for the base and knows frames, if any."""

    def key(self, digest: str) -> str:
        """Return a digest of everything that the results depend on.

        Args:
            digest: digest of the base model.

        Raises:
            Misconfigured: if a file is missing.
        """
        files = (self.suite, self.text, *self.prior_text)
        for path in files:
            if not path.is_file():
                raise Misconfigured(f"expected a file, got {path}")
        texts = [sha256_file(path) for path in files]
        parts = [FORMAT, self.task, digest, *texts, list(self.inner_params), list(self.subject_params)]
        folded = self.model / FACTS
        return sha256_json([*parts, sha256_file(folded)] if folded.is_file() else parts)


def prepare(inputs: Inputs, out: Path) -> dict[str, Any]:
    """Fill a folder with `prior.safetensors`, `baseline.json` and `lineage.json`, and return the last one's content.

    A trained editor is checked before anything is measured; its files go into a folder beside the others.

    Raises:
        Misconfigured: if the model, a file or the editor cannot be used.
        WrongBase: if the editor is for another base.
        IntegrityBroken: if the editor is damaged.
    """
    digest = base_digest(inputs.model)
    inputs = replace(inputs, task=inputs.task or declared_task(inputs.model))
    inputs, settings, trained = _with_editor(inputs, digest, out / EDITOR_FOLDER)
    kept = _cache_folder() / inputs.key(digest)
    if not (kept / "lineage.json").is_file():
        _say(f"measuring the base model in {inputs.model}")
        _fill(kept, inputs, digest)
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        _copy(kept / name, out / name)
    measured: dict[str, Any] = json.loads((out / "lineage.json").read_text(encoding="utf-8"))
    names = {"inner_params": measured["inner_params"], "subject_params": measured["subject_params"]}
    lineage = measured | {"editor": asdict(settings) | names, "trained": trained}
    write_atomically(out / "lineage.json", canonical_json(lineage).encode())
    return lineage


def _with_editor(inputs: Inputs, digest: str, out: Path) -> tuple[Inputs, EditorSettings, dict[str, str] | None]:
    """Return the inputs with the weights that an editor was trained for, its settings, and its checked files."""
    folder = _chosen_editor(inputs, digest)
    if folder is None:
        return inputs, EditorSettings(), None
    from editors.mend.checkpoint import TENSORS, TrainedEditor
    from editors.methods.select import lineage_settings

    trained = TrainedEditor.load(folder, digest)
    settings = lineage_settings(trained, task=inputs.task)
    files = {"name": _name_of(folder.absolute()), "card": f"{out.name}/{CARD}", "tensors": f"{out.name}/{TENSORS}"}
    settings = replace(settings, transform=trained.save(out))
    chosen = replace(inputs, inner_params=settings.inner_params, subject_params=settings.subject_params)
    return chosen, settings, files


def _name_of(folder: Path) -> str:
    """Return the name of an editor: its folder's, with the run's before it where a training run wrote it."""
    return f"{folder.parent.name}/{folder.name}" if folder.name in RUN_FOLDERS else folder.name


def _chosen_editor(inputs: Inputs, digest: str) -> Path | None:
    """Return the folder of the editor: the one given, or where neither editor nor weights are, the base's default."""
    if inputs.editor == NO_EDITOR:
        return None
    if not inputs.editor:
        return None if inputs.inner_params else shipped_editor(digest)
    if inputs.inner_params:
        raise Misconfigured("expected either weights to edit or a trained editor, which names its own; got both")
    return Path(inputs.editor)


def _fill(kept: Path, inputs: Inputs, digest: str) -> None:
    """Measure in a folder beside the cache's entry and rename it, so that nobody sees half of an entry."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=".", dir=kept.parent))
    try:
        _measure(workspace, inputs, digest)
        try:
            workspace.rename(kept)
        except OSError:
            if not (kept / "lineage.json").is_file():  # if it is, another process was faster
                raise
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _measure(folder: Path, inputs: Inputs, digest: str) -> None:
    from editors.measure.reference import build_reference
    from editors.models.inner_params import default_subject_params
    from editors.solve.prior import measure_prior
    from editors.weights.loading import load_base

    suite = [*read_suite(inputs.suite), *folded_probes(inputs.model)]
    text = read_text(inputs.text)
    model = load_base(inputs.model, inputs.inner_params, task=inputs.task)
    _say(f"keys and gradients of {', '.join(model.inner_param_names)} over plain text")
    measured = measure_prior(model, *map(prior_lines, inputs.prior_text), subjects=prior_subjects(inputs.prior_text))
    prior = measured.save(folder / "prior.safetensors")
    _say(f"the base's answers to {len(suite)} probes")
    reference = build_reference(model, suite, text)
    lineage = {
        "format": FORMAT,
        "task": inputs.task,
        "base_digest": digest,
        "inner_params": list(model.inner_param_names),
        "subject_params": list(inputs.subject_params if inputs.inner_params else default_subject_params(model.module)),
        "prior": {"file": "prior.safetensors", "digest": prior},
        "baseline": {"file": "baseline.json", "digest": reference.save(folder / "baseline.json")},
        "perplexity": reference.figure.perplexity,
        "accuracy": reference.figure.accuracy,
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
    """Prepare a lineage's files and print `lineage.json`; return 1, after one sentence, when something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m editors.prepare", description=main.__doc__)
    add_base_options(parser, task="")
    parser.add_argument("--suite", type=Path, required=True, help="locality suite, JSON lines")
    parser.add_argument("--text", type=Path, required=True, help="plain text for perplexity")
    add_prior_option(parser, usual=None)
    parser.add_argument("--editor", default="", help="folder of a trained editor, or none; see editors.mend.shipped")
    add_weight_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    given = parser.parse_args(arguments)
    inputs = Inputs(
        model=given.model,
        suite=given.suite,
        text=given.text,
        prior_text=tuple(given.prior_text),
        inner_params=tuple(given.inner_params),
        subject_params=tuple(given.subject_params),
        task=given.task,
        editor=given.editor,
    )
    try:
        lineage = prepare(inputs, given.out)
    except CorrigendaError as error:
        _say(one_line(error))
        return 1
    except OSError as error:
        _say(one_line(Misconfigured(str(error))))
        return 1
    print(json.dumps(lineage))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
