"""The folder that becomes a model version: manifest, its own delta, gate report, code.

What it stands on, accumulators and earlier deltas, is named by URI (see `shared_files`). The model that reads the
manifest is `editors/weights/mlflow_model.py`; it is shipped as text and never imported here.
"""

from __future__ import annotations

import io
import json
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.adapters.mlflow.answers import before_after, before_after_markdown
from pipeline.domain.errors import IntegrityBroken, Misconfigured
from pipeline.domain.formats.canonical import sha256_file
from pipeline.domain.rank_api import FileRef, LoadPlan
from pipeline.services.registry.registry_ports import RegistryEntry

FORMAT = 2
"""Version of the manifest; `editors/weights/serving.py` reads it."""
REQUIREMENTS = (
    "mlflow",
    "torch",
    "transformers",
    "safetensors",
    "numpy",
    "pydantic",
    "rfc8785",
    "regex",
    "icu4py",
)
"""What loading a version needs, pinned to what is installed where it is registered."""
SAID_WHEN_LOADING = {"base_ref": "", "device": "cpu", "package_digest": ""}
"""What a loader may say in `model_config`: MLflow drops every word that is not in here."""
OWN_DELTA = "delta.safetensors"


def shared_files(plan: LoadPlan) -> tuple[FileRef, ...]:
    """Return the files of a plan that other versions need too: everything but its last delta."""
    return (*((plan.accumulator,) if plan.accumulator else ()), *plan.deltas[:-1])


def write_snapshot(entry: RegistryEntry, folder: Path, uris: Mapping[str, str]) -> Path:
    """Write `snapshot/`: the manifest and the snapshot's own delta.

    Args:
        entry: the snapshot and the files that it is loaded from.
        folder: where to write.
        uris: digest -> URI of every file in `shared_files`.

    Raises:
        IntegrityBroken: if the delta is not what was recorded, or the deltas do not make the snapshot's digest.
    """
    target = folder / "snapshot"
    target.mkdir(parents=True)
    manifest = _manifest(entry, uris)
    if entry.plan.deltas:
        _copy(entry.plan.deltas[-1], target / OWN_DELTA)
    _write_json(target / "manifest.json", manifest)
    return target


def write_reports(entry: RegistryEntry, folder: Path) -> Path:
    """Write `report/`: the gate report and what was said before and after, for people and for programs."""
    target = folder / "report"
    target.mkdir(parents=True)
    rows = before_after(entry)
    _write_json(target / "gate_report.json", dict(entry.report))
    _write_json(target / "before_after.json", rows)
    (target / "before_after.md").write_text(before_after_markdown(rows), encoding="utf-8")
    return target


def write_model(entry: RegistryEntry, folder: Path, uris: Mapping[str, str], *, run_id: str, model_id: str) -> Path:
    """Write `model/`: a models-from-code pyfunc of the snapshot that loads outside the checkout.

    Arguments and errors are those of `write_snapshot`.
    """
    pyfunc = _pyfunc()
    from mlflow.models import Model

    target = folder / "model"
    code = folder / "code.zip"
    code.write_bytes(_code_archive())
    artifacts = {
        "snapshot": str(write_snapshot(entry, folder, uris)),
        "report": str(write_reports(entry, folder)),
        "code": str(code),
    }
    pyfunc.save_model(
        path=str(target),
        python_model=str(_package_folder("editors") / "weights" / "mlflow_model.py"),
        artifacts=artifacts,
        pip_requirements=_requirements(),
        model_config=SAID_WHEN_LOADING,
        mlflow_model=Model(run_id=run_id, model_id=model_id),
    )
    _write_signature(target / "MLmodel")
    return target


def _pyfunc() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing it warns about type hints of its own
        import mlflow.pyfunc
    return mlflow.pyfunc


def _manifest(entry: RegistryEntry, uris: Mapping[str, str]) -> dict[str, Any]:
    lineage, snapshot, plan = entry.lineage, entry.snapshot, entry.plan
    own = [delta.digest for delta in plan.deltas]
    if not entry.digest_path.ends_with(own):
        raise IntegrityBroken(f"expected the last deltas of snapshot {snapshot.snapshot_id} to be those it loads")
    if entry.digest_path.digest != snapshot.digest:
        raise IntegrityBroken(f"expected the deltas of snapshot {snapshot.snapshot_id} to make its digest")
    shared = [{"uri": uris[delta.digest], "digest": delta.digest} for delta in plan.deltas[:-1]]
    last = [{"file": OWN_DELTA, "digest": delta.digest} for delta in plan.deltas[-1:]]
    accumulator = plan.accumulator
    return {
        "format": FORMAT,
        "lineage": lineage.settings.name,
        "snapshot_id": snapshot.snapshot_id,
        "seq": snapshot.seq,
        "parent_id": snapshot.parent_id,
        "digest": snapshot.digest,
        "base": asdict(plan.base),
        "inner_params": list(plan.editor.inner_params),
        "accumulator": {"uri": uris[accumulator.digest], "digest": accumulator.digest} if accumulator else None,
        "deltas": shared + last,
        "digest_path": asdict(entry.digest_path),
    }


def _copy(source: FileRef, target: Path) -> None:
    shutil.copyfile(source.path, target)
    found = sha256_file(target)
    if found != source.digest:
        raise IntegrityBroken(f"expected {source.path} to have the digest {source.digest[:12]}, got {found[:12]}")


@lru_cache(maxsize=1)
def _code_archive() -> bytes:
    """Return the sources that a loaded model imports: `editors`, and of `pipeline` the domain only.

    They are one archive, which Python imports from as it is: as `code_paths` each file was an upload of its own, which
    took most of the time of a registration. The same sources give the same bytes.
    """
    held = io.BytesIO()
    pipeline = _package_folder("pipeline")
    sources = [(pipeline / "__init__.py", "pipeline/__init__.py")]
    for folder, name in ((_package_folder("editors"), "editors"), (pipeline / "domain", "pipeline/domain")):
        sources += [(path, f"{name}/{path.relative_to(folder)}") for path in sorted(folder.rglob("*.py"))]
    with zipfile.ZipFile(held, "w") as archive:
        for path, name in sources:
            archive.writestr(zipfile.ZipInfo(name), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return held.getvalue()


def _write_signature(path: Path) -> None:
    """Add the parameters: without an example, which would load the model here, MLflow cannot know them."""
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    model = Model.load(str(path))
    model.signature = ModelSignature(
        inputs=model.signature.inputs if model.signature else Schema([ColSpec(DataType.string)]),
        outputs=Schema([ColSpec(DataType.string)]),
        params=ParamSchema(
            [
                ParamSpec(name="max_new_tokens", dtype=DataType.long, default=24),
                ParamSpec(name="chat", dtype=DataType.boolean, default=False),
            ]
        ),
    )
    model.save(str(path))


def _package_folder(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise Misconfigured(f"expected the package {name} beside pipeline, found none; it travels with every version")
    return Path(next(iter(spec.submodule_search_locations)))


def _requirements() -> list[str]:
    return [_pinned(name) for name in REQUIREMENTS]


def _pinned(name: str) -> str:
    try:
        return f"{name}=={version(name).partition('+')[0]}"
    except PackageNotFoundError:
        return name


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, default=str) + "\n", encoding="utf-8")
