"""The install steps of the images, in a bare folder that holds what the image copies, without a container engine."""

import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.waiting import patience

IMAGES = sorted((ROOT / "infra" / "images").glob("*.Dockerfile"))


def install_step(image: Path) -> list[str]:
    [step] = re.findall(r"^RUN pip (install .+)$", image.read_text(), flags=re.MULTILINE)
    return shlex.split(step)


@pytest.fixture(scope="module")
def bare_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("app")
    for line in re.findall(r"^COPY ([^-].*) \S+$", IMAGES[0].read_text(), flags=re.MULTILINE):
        for name in line.split():
            source = ROOT / name
            # What .dockerignore leaves out; editors/models is code.
            ignored = shutil.ignore_patterns("__pycache__", *(("secrets", "models") if name == "infra" else ()))
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=ignored)
            else:
                shutil.copy(source, folder / name)
    return folder


def pip(*arguments: str, folder: Path) -> str:
    command = [sys.executable, "-m", "pip", *arguments]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=patience(240), check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize("step", sorted({" ".join(install_step(image)) for image in IMAGES}))
def test_the_install_step_of_the_images_resolves(step: str, bare_folder: Path) -> None:
    # Against what is installed here: constraints name the same versions, so nothing has to be fetched anew.
    said = pip(*step.split(), "--dry-run", folder=bare_folder)
    assert "Would install corrigenda-" in said


def test_the_control_image_asks_for_no_torch(bare_folder: Path) -> None:
    control = next(image for image in IMAGES if image.name == "control.Dockerfile")
    assert install_step(control)[-1] == ".[s3]"
    assert all("[edit,s3]" in install_step(image)[-1] for image in IMAGES if image is not control)


def test_what_the_control_image_runs_imports_no_torch() -> None:
    modules = "pipeline.entrypoints.consumer, workers.app, pipeline.entrypoints.migrate"
    commands = "from tests.support.commands import every_command; [*every_command()]"
    found = "[m for m in ('torch', 'transformers', 'deepspeed') if m in sys.modules]"
    code = f"import sys, {modules}; {commands}; print({found})"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert said.stdout == "[]\n", said.stderr


def test_the_wheel_holds_everything_that_is_read_at_run_time(bare_folder: Path, tmp_path: Path) -> None:
    pip("wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), ".", folder=bare_folder)
    [wheel] = tmp_path.glob("corrigenda-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    folders = [ROOT / name for name in ("pipeline", "editors", "workers", "migrations", "infra")]
    data = {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in {".json", ".jsonl", ".txt", ".safetensors", ".py"} and "secrets" not in path.parts
    }
    assert "pipeline/schemas/edits.requests.v1.json" in names
    assert "infra/deepspeed/zero3.json" in names
    assert data <= names
