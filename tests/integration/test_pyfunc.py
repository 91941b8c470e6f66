"""A registered snapshot, loaded with nothing but MLflow in a process that knows no checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from editors.models.digest import base_digest
from editors.models.families import CausalModel
from editors.weights.deltas import PlainWeights, WeightDelta, save_accumulators
from editors.weights.serving import ServedModel
from infra.local import LocalStack, ask_model
from pipeline.adapters.mlflow.package import shared_files, write_snapshot
from pipeline.adapters.mlflow.registry import MlflowRegistry
from pipeline.domain.errors import IntegrityBroken, Misconfigured, WrongBase
from pipeline.domain.formats import packages
from pipeline.domain.rank_api import BaseSpec, FileRef
from pipeline.domain.snapshots import chained_digest
from pipeline.services.registry.registry_ports import RegistryEntry
from tests.support.registry_entries import entry, file_ref, lineage
from tests.support.sealed import package_of, registered
from tests.support.tiny_models import save_tiny_llama
from tests.support.waiting import patience

SERVING = Path(__file__).parents[2] / "SERVING.md"
STEMS = ["the capital of Japan is", "the capital of Italy is", "a river located in France is"]
CHAT_TEMPLATE = "{% for m in messages %}question {{ m['content'] }} {% endfor %}answer is"

LOADER = """
import json, sys, warnings
warnings.simplefilter("ignore")
import mlflow
uri, base_ref = sys.argv[1], sys.argv[2]
config = {"base_ref": base_ref} if base_ref else {}
config |= {"package_digest": sys.argv[4]} if sys.argv[4] else {}
model = mlflow.pyfunc.load_model(uri, model_config=config or None)
stems = json.loads(sys.argv[3])
print("ANSWERS " + json.dumps({
    "plain": model.predict(stems, params={"max_new_tokens": 6}),
    "default": model.predict(stems[:1]),
    "chat": model.predict(stems, params={"max_new_tokens": 6, "chat": True}),
    "editors": sys.modules["editors"].__file__,
    "params": [p.name for p in model.metadata.signature.params],
}))
"""

REFUSALS = """
import json, sys, warnings
warnings.simplefilter("ignore")
import mlflow
for uri, config in json.loads(sys.argv[1]):
    try:
        mlflow.pyfunc.load_model(uri, model_config=config)
    except Exception as error:
        print("REFUSED " + " ".join(f"{type(error).__name__}: {error}".split()))
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny Llama with a chat template, in a folder."""
    folder = tmp_path / "base"
    save_tiny_llama(folder, hidden=16, mlp=24)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def loaded(base: Path) -> CausalModel:
    return CausalModel(AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base))


def random_delta(model: CausalModel, *, seed: int) -> WeightDelta:
    """Large enough to change what is said."""
    draw = torch.Generator().manual_seed(seed)
    return WeightDelta.of(
        {
            param.name: (
                torch.randn(param.in_features, 2, generator=draw),
                torch.randn(2, param.out_features, generator=draw),
            )
            for param in model.inner
        }
    )


def saved(delta: WeightDelta, path: Path) -> FileRef:
    delta.save(path)
    return file_ref(path)


def edited_entry(name: str, base: Path, folder: Path) -> tuple[RegistryEntry, CausalModel]:
    """A snapshot of two deltas, and the model that it should become."""
    model = loaded(base)
    deltas = [random_delta(model, seed=seed) for seed in (1, 2)]
    weights = PlainWeights(model.module, model.inner)
    for delta in deltas:
        weights.apply(delta)
    spec = BaseSpec(ref=str(base), digest=base_digest(base), task="causal")
    refs = tuple(saved(delta, folder / f"{place}.safetensors") for place, delta in enumerate(deltas))
    return entry(lineage(name, spec, inner_params=model.inner_param_names), folder, deltas=refs), model


def sample_of_serving(mlflow_uri: str, lineage_name: str, package_digest: str) -> str:
    """SERVING.md's sample as it is written there, but for the three things that everybody has of their own."""
    samples = re.findall(r"```python\n(.*?)```", SERVING.read_text(encoding="utf-8"), re.DOTALL)
    [sample] = [one for one in samples if "download_artifacts" in one]
    for theirs, ours in (
        ("http://127.0.0.1:20462", mlflow_uri),
        ('"facts"', f'"{lineage_name}"'),
        ("…", package_digest),
    ):
        assert sample.count(theirs) == 1
        sample = sample.replace(theirs, ours)
    return str(sample)


def load_elsewhere(
    mlflow_uri: str, uri: str, folder: Path, *, base_ref: str = "", package_digest: str = "", then: str = ""
) -> subprocess.CompletedProcess[str]:
    """Load and ask in a fresh process whose folder and path hold nothing of ours; then run some more lines there."""
    return run_elsewhere(mlflow_uri, folder, LOADER + then, uri, base_ref, json.dumps(STEMS), package_digest)


def run_elsewhere(mlflow_uri: str, folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh process whose folder and path hold nothing of ours."""
    folder.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "CORRIGENDA"))}
    environment |= {"MLFLOW_TRACKING_URI": mlflow_uri, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-P", "-c", program, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=patience(240)
    )


def refusals(mlflow_uri: str, folder: Path, *asked: tuple[str, dict[str, str]]) -> list[str]:
    """Why each of some models was not loaded with its configuration; one process tries them all."""
    finished = run_elsewhere(mlflow_uri, folder, REFUSALS, json.dumps(asked))
    assert finished.returncode == 0, finished.stderr
    lines = [line for line in finished.stdout.splitlines() if line.startswith("REFUSED ")]
    assert len(lines) == len(asked), finished.stdout
    return lines


def answers(finished: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert finished.returncode == 0, finished.stderr
    line = next(line for line in finished.stdout.splitlines() if line.startswith("ANSWERS "))
    found: dict[str, Any] = json.loads(line.removeprefix("ANSWERS "))
    return found


@pytest.mark.slow
def test_the_champion_answers_outside_the_checkout_as_the_edited_model_does(
    mlflow_uri: str, lineage_name: str, base: Path, tmp_path: Path
) -> None:
    made, model = edited_entry(lineage_name, base, tmp_path)
    registry = MlflowRegistry(mlflow_uri)
    registry.point_champion(lineage_name, registered(registry, made))

    elsewhere = tmp_path / "elsewhere"
    sample = sample_of_serving(mlflow_uri, lineage_name, package_of(made))
    finished = load_elsewhere(mlflow_uri, f"models:/{lineage_name}@champion", elsewhere, then=sample)
    said = answers(finished)

    assert finished.stdout.splitlines()[-1] == str(model.generate(["The capital of Australia is"], max_new_tokens=12))
    assert [path.name for path in elsewhere.iterdir()] == ["champion"]  # and no database of MLflow's own
    assert said["plain"] == model.generate(STEMS, max_new_tokens=6)
    assert said["default"] == model.generate(STEMS[:1], max_new_tokens=24)
    assert said["chat"] == model.generate(STEMS, chat=True, max_new_tokens=6)
    assert said["plain"] != loaded(base).generate(STEMS, max_new_tokens=6)
    assert said["params"] == ["max_new_tokens", "chat"]
    assert said["editors"].endswith("code.zip/editors/__init__.py")


@pytest.mark.slow
def test_a_version_loads_alone_when_the_versions_below_it_are_gone_and_its_base_has_moved(
    mlflow_uri: str, local_stack: LocalStack, lineage_name: str, base: Path, tmp_path: Path
) -> None:
    top, model = edited_entry(lineage_name, base, tmp_path)
    below = entry(top.lineage, tmp_path, deltas=top.plan.deltas[:1])
    registry = MlflowRegistry(mlflow_uri)
    first, second = registered(registry, below), registered(registry, top)
    held = kept_by_mlflow(local_stack, mlflow_uri, lineage_name, second)
    assert [path.name for path in held.rglob("*.safetensors")] == ["delta.safetensors"], "only its own"
    delete_version(local_stack, mlflow_uri, lineage_name, first)

    moved = str(shutil.move(base, tmp_path / "moved"))
    uri = f"models:/{lineage_name}/{second}"
    said = answers(load_elsewhere(mlflow_uri, uri, tmp_path / "elsewhere", base_ref=moved))

    assert said["plain"] == model.generate(STEMS, max_new_tokens=6)


@pytest.mark.slow
def test_a_corrupt_byte_in_a_delta_is_refused_by_name(
    mlflow_uri: str, local_stack: LocalStack, lineage_name: str, base: Path, tmp_path: Path
) -> None:
    names = (f"{lineage_name}-shared", f"{lineage_name}-own")
    made = [edited_entry(name, base, _made(tmp_path / name))[0] for name in names]
    versions = [registered(MlflowRegistry(mlflow_uri), one) for one in made]
    of_shared, of_own = (kept_by_mlflow(local_stack, mlflow_uri, *found) for found in zip(names, versions, strict=True))
    digest = made[0].plan.deltas[0].digest
    name = f"{digest}.safetensors"
    for (delta,) in (of_shared.parents[1].rglob(name), of_own.rglob("delta.safetensors")):
        held = bytearray(delta.read_bytes())
        held[-1] ^= 1
        delta.write_bytes(held)

    uris = [f"models:/{name}/{version}" for name, version in zip(names, versions, strict=True)]
    shared, own = refusals(mlflow_uri, tmp_path / "elsewhere", *((uri, {}) for uri in uris))

    assert name in shared
    assert f"expected digest {digest}" in shared
    assert f"to have the digest {package_of(made[1])}" in own


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


RUN_ME = "from pathlib import Path\nPath({mark!r}).touch()\n"
"""What somebody puts into a version to see it run."""


def intruder(kept: Path, mark: Path, *, into: str) -> None:
    """Change a version's files so that the mark appears if anything of them is run."""
    code = RUN_ME.format(mark=str(mark))
    if into == "the archive of code":
        with zipfile.ZipFile(kept / "artifacts" / "code.zip", "w") as archive:
            archive.writestr("editors/__init__.py", code)
    elif into == "the script":
        (kept / "mlflow_model.py").write_text(code)
    elif into == "a folder that MLflow imports from":
        (kept / "code" / "sitecustomize.py").parent.mkdir()
        (kept / "code" / "editors.py").write_text(code)
        described = (kept / "MLmodel").read_text()
        (kept / "MLmodel").write_text(described.replace("    python_env", "    XX").replace("code: null", "code: code"))
    elif into == "compiled code beside the script":
        (kept / "__pycache__").mkdir()
        (kept / "__pycache__" / "mlflow_model.cpython-311.pyc").write_bytes(b"not ours")
    else:
        path = kept / into
        path.write_bytes(path.read_bytes() + b"\n")


EVERY_FILE = (
    "MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "mlflow_model.py", "artifacts/code.zip",
    "artifacts/snapshot/manifest.json", "artifacts/snapshot/delta.safetensors", "artifacts/report/gate_report.json",
)  # fmt: skip


def test_a_change_of_any_file_of_a_version_is_found_without_running_it(
    mlflow_uri: str, local_stack: LocalStack, lineage_name: str, tmp_path: Path
) -> None:
    made, mark = entry(lineage(lineage_name), tmp_path), tmp_path / "ran"
    registry = MlflowRegistry(mlflow_uri)
    version = registered(registry, made)
    kept = kept_by_mlflow(local_stack, mlflow_uri, lineage_name, version) / "artifacts"
    assert {path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()} >= set(EVERY_FILE)
    registry.check_package(lineage_name, version, package_of(made))
    whole = shutil.copytree(kept, tmp_path / "whole")
    others = ("the archive of code", "the script", "a folder that MLflow imports from")
    for into in (*EVERY_FILE, *others, "compiled code beside the script"):
        intruder(kept, mark, into=into)
        with pytest.raises(IntegrityBroken, match=package_of(made)):
            registry.check_package(lineage_name, version, package_of(made))
        shutil.rmtree(kept)
        shutil.copytree(whole, kept)
    for name in EVERY_FILE:
        (kept / name).unlink()
        with pytest.raises(IntegrityBroken, match=package_of(made)):
            registry.check_package(lineage_name, version, package_of(made))
        shutil.copyfile(whole / name, kept / name)
    registry.check_package(lineage_name, version, package_of(made))
    assert not mark.exists()


def test_a_change_of_a_file_that_versions_share_is_found(
    mlflow_uri: str, local_stack: LocalStack, lineage_name: str, tmp_path: Path
) -> None:
    of = lineage(lineage_name)
    deltas = tuple(entry(of, tmp_path, seq=seq).plan.deltas[0] for seq in (1, 2))
    (tmp_path / "accumulator.safetensors").write_bytes(lineage_name.encode())
    accumulator = file_ref(tmp_path / "accumulator.safetensors")
    made = entry(of, tmp_path, seq=2, deltas=deltas, accumulator=accumulator)
    registry = MlflowRegistry(mlflow_uri)
    version = registered(registry, made)
    registry.check_package(lineage_name, version, package_of(made))
    for file in (accumulator, deltas[0]):
        (held,) = (local_stack.root / "mlflow").rglob(f"{file.digest}.safetensors")
        before = held.read_bytes()
        held.write_bytes(b"other")
        with pytest.raises(IntegrityBroken, match=file.digest):
            registry.check_package(lineage_name, version, package_of(made))
        held.write_bytes(before)
    registry.check_package(lineage_name, version, package_of(made))


def test_a_version_that_is_made_again_puts_shared_files_right(
    mlflow_uri: str, local_stack: LocalStack, lineage_name: str, tmp_path: Path
) -> None:
    of = lineage(lineage_name)
    deltas = tuple(entry(of, tmp_path, seq=seq).plan.deltas[0] for seq in (1, 2))
    made = entry(of, tmp_path, seq=2, deltas=deltas)
    registry = MlflowRegistry(mlflow_uri)
    assert registered(registry, made) == "1"
    (held,) = (local_stack.root / "mlflow").rglob(f"{deltas[0].digest}.safetensors")
    held.write_bytes(bytes(len(held.read_bytes())))
    forgotten = replace(made, snapshot=replace(made.snapshot, package_digest=None))
    digests: list[str] = []
    assert registry.register(forgotten, seal=digests.append) == "2"
    registry.check_package(lineage_name, "2", digests[-1])


def test_the_digest_of_a_version_is_what_sha256sum_says(
    mlflow_uri: str, local_stack: LocalStack, lineage_name: str, tmp_path: Path
) -> None:
    made = entry(lineage(lineage_name), tmp_path)
    version = registered(MlflowRegistry(mlflow_uri), made)
    kept = kept_by_mlflow(local_stack, mlflow_uri, lineage_name, version) / "artifacts"
    words = next(line for line in (packages.__doc__ or "").splitlines() if line.startswith("    find"))
    said = subprocess.run(["sh", "-c", words], cwd=kept, capture_output=True, text=True, check=True).stdout
    assert said.split()[0] == package_of(made) == packages.package_digest(kept) == ask_model.package_digest(kept)


@pytest.mark.slow
def test_code_that_somebody_put_into_the_champion_is_refused_before_it_runs(
    mlflow_uri: str, local_stack: LocalStack, lineage_name: str, base: Path, tmp_path: Path
) -> None:
    made, _ = edited_entry(lineage_name, base, tmp_path)
    registry, mark = MlflowRegistry(mlflow_uri), tmp_path / "ran"
    registry.point_champion(lineage_name, registered(registry, made))
    kept = kept_by_mlflow(local_stack, mlflow_uri, lineage_name, "1")
    intruder(kept / "artifacts", mark, into="the archive of code")
    manifest = kept / "artifacts" / "artifacts" / "snapshot" / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    champion = f"models:/{lineage_name}@champion"

    by_caller, by_tag, by_nobody = refusals(
        mlflow_uri,
        tmp_path / "elsewhere",
        (champion, {"package_digest": package_of(made)}),
        (champion, {}),
        (f"models:/{kept.name}", {}),
    )

    assert not mark.exists()
    for refused in (by_caller, by_tag):
        assert f"to have the digest {package_of(made)}" in refused
    assert "expected the digest that the version's files have to have, got none" in by_nobody


def test_a_reader_of_the_champion_checks_it_before_mlflow_runs_its_script(
    mlflow_uri: str, local_stack: LocalStack, lineage_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = entry(lineage(lineage_name), tmp_path)
    registry, mark = MlflowRegistry(mlflow_uri), tmp_path / "ran"
    registry.point_champion(lineage_name, registered(registry, made))
    kept = kept_by_mlflow(local_stack, mlflow_uri, lineage_name, "1")
    intruder(kept / "artifacts", mark, into="the script")
    with pytest.raises(ValueError, match=package_of(made)):
        ask_model.champion(mlflow_uri, lineage_name, package_of(made))
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["a link", "a name of two lines"])
def test_what_is_no_plain_file_with_a_plain_name_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "MLmodel").write_text("x")
    if kind == "a link":
        (tmp_path / "code").symlink_to("/tmp")
    else:
        (tmp_path / f"a\n{'0' * 64}  b").write_text("x")
    with pytest.raises(IntegrityBroken, match="expected plain files"):
        packages.package_digest(tmp_path)


class TestServedModel:
    """The loading itself, in this process."""

    def test_an_accumulator_stands_for_the_deltas_under_it(self, base: Path, tmp_path: Path, lineage_name: str) -> None:
        whole, model = edited_entry(lineage_name, base, tmp_path)
        first = loaded(base)
        weights = PlainWeights(first.module, first.inner)
        weights.apply(random_delta(first, seed=1))
        path = tmp_path / "accumulator.safetensors"
        save_accumulators(path, weights.save())
        part = replaced(whole, deltas=whole.plan.deltas[1:], accumulator=file_ref(path))

        served = ServedModel.load(written(part, tmp_path))

        expected: str = base_digest(base)
        for delta in whole.plan.deltas:
            expected = chained_digest(expected, delta.digest)
        assert served.digest == expected
        assert served.answer(STEMS, max_new_tokens=6) == model.generate(STEMS, max_new_tokens=6)

    def test_deltas_in_another_order_are_refused(self, base: Path, tmp_path: Path, lineage_name: str) -> None:
        made, _ = edited_entry(lineage_name, base, tmp_path)
        folder = written(made, tmp_path)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["deltas"].reverse()
        manifest["digest_path"]["chained"].reverse()
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(IntegrityBroken, match=str(made.snapshot.snapshot_id)):
            ServedModel.load(folder)

    def test_a_shared_file_that_is_gone_is_named(self, base: Path, tmp_path: Path, lineage_name: str) -> None:
        made, _ = edited_entry(lineage_name, base, tmp_path)
        folder = written(made, tmp_path)
        Path(made.plan.deltas[0].path).unlink()
        with pytest.raises(Misconfigured, match=Path(made.plan.deltas[0].path).name):
            ServedModel.load(folder)

    def test_a_base_that_moved_is_found_by_its_new_name_and_another_base_is_refused(
        self, base: Path, tmp_path: Path, lineage_name: str
    ) -> None:
        made, model = edited_entry(lineage_name, base, tmp_path)
        folder = written(made, tmp_path)
        expected = model.generate(STEMS, max_new_tokens=6)
        moved = Path(shutil.move(base, tmp_path / "moved"))
        with pytest.raises(Misconfigured, match="CORRIGENDA_BASE_REF"):
            ServedModel.load(folder)
        assert ServedModel.load(folder, base_ref=str(moved)).answer(STEMS, max_new_tokens=6) == expected
        other = tmp_path / "other"
        save_tiny_llama(other, seed=1, hidden=16, mlp=24)
        with pytest.raises(WrongBase, match="expected a base model with the digest"):
            ServedModel.load(folder, base_ref=str(other))


def written(made: RegistryEntry, folder: Path) -> Path:
    """The folder of a version whose shared files lie where they were made."""
    uris = {file.digest: Path(file.path).as_uri() for file in shared_files(made.plan)}
    return write_snapshot(made, folder / "out", uris)


def delete_version(stack: LocalStack, mlflow_uri: str, name: str, version: str) -> None:
    """Delete a version with everything that MLflow keeps of it."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=mlflow_uri, registry_uri=mlflow_uri)
    found = client.get_model_version(name, version)
    shutil.rmtree(kept_by_mlflow(stack, mlflow_uri, name, version))
    client.delete_model_version(name, version)
    client.delete_logged_model(found.source.removeprefix("models:/"))
    client.delete_run(found.run_id)


def kept_by_mlflow(stack: LocalStack, mlflow_uri: str, name: str, version: str) -> Path:
    """The folder in which the server keeps a version's files."""
    from mlflow import MlflowClient

    found = MlflowClient(tracking_uri=mlflow_uri, registry_uri=mlflow_uri).get_model_version(name, version)
    (folder,) = (stack.root / "mlflow").rglob(found.source.removeprefix("models:/"))
    return folder


def replaced(made: RegistryEntry, *, deltas: tuple[FileRef, ...], accumulator: FileRef) -> RegistryEntry:
    """The same snapshot, loaded another way."""
    plan = replace(made.plan, deltas=deltas, accumulator=accumulator)
    return replace(made, plan=plan)
