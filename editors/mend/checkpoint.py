"""An editor's folder: a trained transform, and the card that says what it is for.

    editor.safetensors   the network, its statistics and its rates, fp32 (sums of the statistics fp64)
    card.json            base, inner parameters, settings, data, figures; binds the other file by its SHA-256

Equal editors give equal bytes. Both files appear by renaming, the card last, so a card that is whole has its tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of

from editors.data.atomic_files import write_atomically
from editors.mend.shipped import CARD
from editors.mend.transform import MendTransform, Statistics
from editors.models.digest import names_base
from editors.weights.tensor_files import tensor_bytes
from pipeline.domain.errors import CorrigendaError, IntegrityBroken, Misconfigured, WrongBase
from pipeline.domain.formats.canonical import canonical_json, sha256_bytes, sha256_json
from pipeline.domain.rank_api import RANGES, TrainedFiles

TENSORS = "editor.safetensors"
FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class CardStage:
    """Inner parameters that are edited together, before those of later stages."""

    inner_params: tuple[str, ...]
    """Names, in block order."""
    key_tokens: str
    """Which tokens of an edit are its rows there: `answer`, `subject` or `all`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """A file an editor was trained or validated on."""

    name: str
    """Without its folder."""
    digest: str
    """SHA-256 of its bytes."""
    use: str
    """`train`, `validation`, `text`, or `prior text` with a number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditorCard:
    """What a trained editor is, what it was made from and how good it was."""

    base_digest: str
    """Digest of the only base that it may edit."""
    task: str
    """`causal`, `seq2seq` or `classifier`."""
    solver: str
    """What makes weights of its shifts, in training and in use: `recursive` or `mend` (`sum` in older cards)."""
    stages: tuple[CardStage, ...]
    """What is edited, in the order in which it is edited."""
    shapes: tuple[tuple[str, int, int], ...]
    """(inner parameter, in_features, out_features), in the order of the transform's rows."""
    rank: int
    """Rank of the network's layers."""
    statistics: Statistics
    """What pairs are normalised by."""
    stop_probability: float
    """Target probability from which a token asks for nothing; `rest` in the file."""
    settings: dict[str, Any]
    """Fields of `EditorSettings` with which it has to be used, beside those that the card has of its own."""
    training: dict[str, Any]
    """Constants that it was trained with."""
    data: tuple[DataFile, ...]
    """Files that it was trained and validated on."""
    metrics: dict[str, float]
    """Validation figures at the best step, by the constants under `training`."""
    command: str
    """Command line that trained it."""
    num_steps: int
    """Training steps behind these weights."""
    versions: dict[str, str]
    """Library -> version that trained it."""
    licence: str
    """What its data's licences ask for."""

    @property
    def is_published(self) -> bool:
        """Whether it was trained for the update of MEND as published, and not for a solve."""
        return self.solver in ("mend", "sum")

    def as_json(self) -> dict[str, Any]:
        """Return the card as a JSON object."""
        document = asdict(self)
        # By its first name: the digest is of the bytes of the card, so editors that are there keep theirs.
        return {"format": FORMAT, "rest": document.pop("stop_probability"), **document}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read a card.

        Raises:
            Misconfigured: if it has a format that this version does not know.
            KeyError, ValueError: if it is no card.
        """
        if document["format"] != FORMAT:
            raise Misconfigured(f"expected an editor's card of format {FORMAT}, got {document['format']!r}")
        return TypeAdapter(cls).validate_python({**document, "stop_probability": document["rest"]})


@dataclass(frozen=True, kw_only=True)
class TrainedEditor:
    """A trained transform with its card."""

    card: EditorCard
    """What it is for and how it has to be used."""
    transform: MendTransform = field(repr=False)
    """The network, with the statistics and rates it was saved with."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 over both files, as `EditorSettings.transform` names it."""
        return _digest(self._files())

    def save(self, folder: Path) -> str:
        """Write both files; a reader sees the old editor, the new one, or one that is refused. Returns the digest."""
        folder.mkdir(parents=True, exist_ok=True)
        files = self._files()
        for name in (TENSORS, CARD):
            write_atomically(folder / name, files[name])
        return _digest(files)

    @classmethod
    def load(cls, folder: Path, expected_base: str | None = None, *, expected_digest: str | None = None) -> Self:
        """Read an editor.

        Args:
            folder: with both files.
            expected_base: digest of the base that it is wanted for.
            expected_digest: the editor's own, if it was recorded.

        Raises:
            IntegrityBroken: if a file is missing or damaged, or the editor is another than expected.
            WrongBase: if it was trained for another base.
            Misconfigured: if its format is not known.
        """
        paths = {name: folder / name for name in (TENSORS, CARD)}
        return cls._opened(paths, expected_base, expected_digest)

    @classmethod
    def of_files(cls, files: TrainedFiles, expected_base: str, expected_digest: str) -> Self:
        """Read an editor of which each file may lie anywhere; arguments and errors as of `load`."""
        paths = {TENSORS: Path(files.tensors.path), CARD: Path(files.card.path)}
        return cls._opened(paths, expected_base, expected_digest)

    @classmethod
    def _opened(cls, paths: Mapping[str, Path], expected_base: str | None, expected_digest: str | None) -> Self:
        files = {name: _read(path) for name, path in paths.items()}
        if expected_digest is not None and (found := _digest(files)) != expected_digest:
            raise IntegrityBroken(f"expected digest {expected_digest} of the editor of {paths[CARD]}, got {found}")
        card = _card(paths, files)
        if expected_base is not None and not names_base(card.base_digest, expected_base):
            raise WrongBase(
                f"expected an editor for the base {expected_base}, got one for {card.base_digest}: {paths[CARD]}"
            )
        return cls(card=card, transform=_transform(paths[TENSORS], card, files[TENSORS]))

    def _files(self) -> dict[str, bytes]:
        tensors = tensor_bytes(self.transform.state_dict(), {"kind": "editor"})
        card = {**self.card.as_json(), "tensors": sha256_bytes(tensors)}
        return {TENSORS: tensors, CARD: (canonical_json(card) + "\n").encode()}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise IntegrityBroken(f"expected a file of a trained editor at {path}, got: {error.strerror}") from error


def _card(paths: Mapping[str, Path], files: Mapping[str, bytes]) -> EditorCard:
    try:
        document = json.loads(files[CARD])
        card, digest = EditorCard.from_json(document), document["tensors"]
    except CorrigendaError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise IntegrityBroken(f"expected an editor's card in {paths[CARD]}, got something else: {error!r}") from error
    if (found := sha256_bytes(files[TENSORS])) != digest:
        raise IntegrityBroken(f"expected digest {digest} of {paths[TENSORS]}, as its card says, got {found}")
    if wrong := _contradiction(card):
        raise IntegrityBroken(f"expected an editor's card in {paths[CARD]}, got one with {wrong}")
    return card


def _contradiction(card: EditorCard) -> str:
    """Return what of a card nothing can be edited by; empty where there is nothing."""
    numbers = card.settings | {"stop_probability": card.stop_probability}
    for name, value in numbers.items():
        if name in RANGES and value not in RANGES[name]:
            return f"{name} {value!r:.80} in place of {RANGES[name]}"
    shaped, staged = {name for name, *_ in card.shapes}, {name for stage in card.stages for name in stage.inner_params}
    # A later stage at the tokens of the answer may have weights that the gradient alone asks.
    of_gradient = {name for stage in card.stages if stage.key_tokens == "answer" for name in stage.inner_params}
    if others := (shaped - staged) | (staged - of_gradient - shaped):
        return f"{min(others)} in its stages or in its shapes alone"
    return ""


def _transform(path: Path, card: EditorCard, tensors: bytes) -> MendTransform:
    shapes = {name: (width, height) for name, width, height in card.shapes}
    try:
        known = tensors_of(tensors)
        # Asked first, so that no memory is taken for a rank or a width that the file does not have.
        of_layers = 4 * card.rank * sum(map(sum, set(shapes.values())))
        if of_layers > sum(tensor.numel() for tensor in known.values()):
            raise Misconfigured(f"too few for rank {card.rank} and the widths of its shapes")
        transform = MendTransform(
            shapes, rank=card.rank, statistics=card.statistics, stop_probability=card.stop_probability
        )
        transform.load_state_dict(known)
    except (RuntimeError, SafetensorError, Misconfigured) as error:
        reason = " ".join(str(error).split())[:300]
        raise IntegrityBroken(f"expected the tensors of the card in {path}, got: {reason}") from error
    return transform.requires_grad_(False)


def _digest(files: Mapping[str, bytes]) -> str:
    return sha256_json({name: sha256_bytes(content) for name, content in files.items()})
