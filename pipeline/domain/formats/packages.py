"""The folder of a model version, and the digest that binds every file of it.

The digest is what two words of a shell say as well, so that nobody needs Corrigenda to check a version:

    find . -type f ! -name registered_model_meta -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.domain.errors import IntegrityBroken
from pipeline.domain.formats.canonical import sha256_file, sha256_text

WRITTEN_BY_DOWNLOADS = "registered_model_meta"
"""MLflow writes this file anew into whatever it downloads, with the name and the number of the version."""


def package_digest(folder: Path) -> str:
    """Return SHA-256 over what `package_lines` says.

    Raises:
        IntegrityBroken: if something in there is no plain file with a plain name.
    """
    return sha256_text(package_lines(folder))


def package_lines(folder: Path) -> str:
    """Return a line a file, in the order of their names: its own SHA-256, two blanks, its path.

    Whoever keeps these lines can check one of the files later by the digest of them all, without the others.

    Raises:
        IntegrityBroken: if something in there is no plain file with a plain name.
    """
    names = sorted((path.relative_to(folder).as_posix() for path in _files(folder)), key=os.fsencode)
    return "".join(f"{sha256_file(folder / name)}  {name}\n" for name in names)


def check_package(folder: Path, expected: str) -> None:
    """Check every file of a version before any of them is read, imported or run.

    Raises:
        IntegrityBroken: if the folder does not have the expected digest.
    """
    found = package_digest(folder)
    if found != expected:
        raise IntegrityBroken(
            f"expected the files of the model version to have the digest {expected}, got {found}: "
            "one of them was changed, added or taken away"
        )


def _files(folder: Path) -> list[Path]:
    every = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    for path in every:
        # Such a name would be two lines, and a link would be checked here and followed elsewhere.
        if path.is_symlink() or not path.is_file() or not path.name.isprintable() or "\\" in path.name:
            raise IntegrityBroken(f"expected plain files in a model version, got {str(path.relative_to(folder))!r}")
    return [path for path in every if path != folder / WRITTEN_BY_DOWNLOADS]
