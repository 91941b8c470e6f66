"""`infra/gpu_wheels.txt` names what the programs for a GPU import and a bare machine with torch does not have."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator

from tests.support.paths import ROOT

PROGRAMS = (
    *("tests.benchmarks.gpu_figures", "editors.training.__main__", "editors.evaluation.__main__"),
    *("workers.rank.__main__", "tests.gpu.test_sharded_base", "tests.gpu.test_training_at_scale"),
)
ON_THE_MACHINE = {"torch", "transformers", "accelerate", "safetensors", "scipy", "pytest"}
THEY_BRING = {"huggingface_hub", "jinja2", "numpy", "regex", "tokenizers", "typing_extensions"}
"""What those need themselves, and so is there too."""


def imported(module: str, seen: set[str]) -> Iterator[str]:
    """Packages of others that are imported as a module of ours is, and not only once something is called."""
    path = ROOT.joinpath(*module.split("."))
    file = next((one for one in (path.with_suffix(".py"), path / "__init__.py") if one.is_file()), None)
    if module in seen or file is None:
        return
    seen.add(module)
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name}" for name in names]
        for name in names:
            top, *rest = name.split(".")
            if not (ROOT / top).is_dir():
                yield top
            for end in range(len(rest) + 1):
                yield from imported(".".join([top, *rest[:end]]), seen)


def test_every_package_that_programs_for_a_gpu_import_is_on_the_machine_or_among_the_wheels() -> None:
    lines = (ROOT / "infra/gpu_wheels.txt").read_text(encoding="utf-8").split("\n")
    wheels = {line for line in lines if line and not line.startswith("#")}
    seen: set[str] = set()
    needed = {name for program in PROGRAMS for name in imported(program, seen)} - set(sys.stdlib_module_names)
    assert needed - ON_THE_MACHINE - THEY_BRING - wheels == set()
    assert {"pydantic", "icu4py"} <= needed
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("-", "_")
    assert [name for name in wheels if f"\n{name.lower().replace('-', '_')}==" not in constraints] == []
