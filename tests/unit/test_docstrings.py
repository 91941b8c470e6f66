"""Every public module, class, function and field says in its docstring more than its name does."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("editors", "pipeline", "workers", "infra", "migrations")
WHOLE = ("editors", "infra", "migrations", "pipeline", "workers")
"""Packages of which every docstring is held to every rule."""
LEAST_WORDS = 3
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str, str | None]]:
    """Line, name and docstring of a module and of everything public in it, fields of records included."""
    yield 1, "", ast.get_docstring(tree)
    yield from _of_body(tree)


def _of_body(owner: ast.Module | ast.ClassDef) -> Iterator[tuple[int, str, str | None]]:
    for node, after in zip(owner.body, [*owner.body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.lineno, node.name, ast.get_docstring(node)
            yield from _of_body(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node.lineno, node.name, ast.get_docstring(node)
        elif _is_field(owner, node):
            assert isinstance(node, ast.AnnAssign)
            assert isinstance(node.target, ast.Name)
            yield node.lineno, node.target.id, _text(after)


def _is_field(owner: ast.Module | ast.ClassDef, node: ast.stmt) -> bool:
    """Whether a statement is a public field of a dataclass."""
    return (
        isinstance(owner, ast.ClassDef)
        and any("dataclass" in ast.unparse(decorator) for decorator in owner.decorator_list)
        and isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and not node.target.id.startswith("_")
        and "ClassVar" not in ast.unparse(node.annotation)
    )


def _text(node: ast.stmt | None) -> str | None:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return node.value.value
    return None


def complaint(name: str, text: str | None) -> str:
    """What is wrong with a docstring; empty when nothing is."""
    if text is None:
        return "has no docstring"
    first = text.strip().partition("\n\n")[0]
    words = re.findall(r"\w+", first)
    if len(words) < LEAST_WORDS:
        return f"says too little: {first!r}"
    if {word.lower() for word in words} <= {*name.lower().split("_"), "a", "an", "the", "of"}:
        return f"says no more than its name: {first!r}"
    if re.match(r"(Knows|Of|See)\b", first):
        return f"is no statement and no imperative: {first!r}"
    return ""


def found(packages: tuple[str, ...], *, wrong: Callable[[str, str | None], str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line}: {name or 'the module'} {problem}"
        for path in sources()
        if path.relative_to(ROOT).parts[0] in packages
        for line, name, text in docstrings(ast.parse(path.read_text(encoding="utf-8")))
        if (problem := wrong(name, text))
    ]


@pytest.mark.parametrize("package", WHOLE)
def test_everything_public_says_more_than_its_name(package: str) -> None:
    assert not (wrong := found((package,), wrong=complaint)), "\n".join(wrong)


def test_everything_public_has_a_docstring_and_none_says_what_a_module_does_not_know() -> None:
    wrong = found(
        PACKAGES,
        wrong=lambda _name, text: "has none" if text is None else "opens with Knows" * text.startswith("Knows"),
    )
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("edit", None),
        ("edit", "The edit."),
        ("edit_rows", "The edit rows."),
        ("kind", "Tag."),
        ("seed", "Of the order of the edits."),
        ("pack", "See `EditableModel`."),
    ],
)
def test_what_says_no_more_than_a_name_is_found(name: str, text: str | None) -> None:
    assert complaint(name, text)
    assert not complaint(name, "Return the edits that hold at the candidate.")
