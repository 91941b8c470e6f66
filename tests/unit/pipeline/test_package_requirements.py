"""A model version asks for every library that loading it imports."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from pipeline.adapters.mlflow.package import REQUIREMENTS

ROOT = Path(__file__).parents[3]
LOADED = ("editors/models", "editors/weights", "pipeline/domain")
OURS = {"editors", "pipeline"}
BROUGHT = {"huggingface_hub", "jinja2", "yaml"}
"""What transformers and torch bring with them."""


def imported(path: Path) -> set[str]:
    """The packages that a source file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_a_model_version_asks_for_every_library_that_its_code_imports() -> None:
    sources = [path for folder in LOADED for path in (ROOT / folder).rglob("*.py")]
    found = set().union(*map(imported, sources)) - set(sys.stdlib_module_names) - OURS - BROUGHT
    assert "icu4py" in found
    assert found <= set(REQUIREMENTS)
