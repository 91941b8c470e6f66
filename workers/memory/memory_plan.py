"""Record of the memory that one rank needs, line by line, and the refusal where it has less."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.domain.errors import Misconfigured
from pipeline.domain.formats.sizes import shown_size


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Amount of work that the ranks are to have memory for."""

    batch_size: int = 32
    """Most edits in a batch."""
    num_edits: int = 1000
    """Active edits that the ledger holds."""
    num_frames: int = 14
    """Most frames of an edit whose keys are rows: eight with two rephrases, and three more for each of two aliases.
    Rows of edits with one frame are kept whole."""
    num_guards: int = 6
    """Guards of an edit."""
    num_tokens: int = 512
    """Most padded tokens of one backward pass on a rank: 256 of edits, 512 of a prior, more where `sum` trains."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryLine:
    """Memory that one purpose takes of a rank."""

    part: str
    """What the memory is for, as people read it."""
    accelerator_bytes: int
    """Bytes of the accelerator; 0 for ranks without one."""
    host_bytes: int
    """Memory that is taken on the host, bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """Memory that the rank with the most to do needs."""

    task: str
    """Task of the base: `causal`, `seq2seq` or `classifier`."""
    dtype: str
    """Type of the base's weights, such as `bfloat16`."""
    num_params: int
    """Elements of the base."""
    num_ranks: int
    """Ranks that hold it together."""
    is_offloaded: bool
    """Whether partitions lie on the host."""
    has_accelerator: bool
    """Whether ranks compute on one."""
    inner_params: tuple[str, ...]
    """Names of the weights that are edited."""
    lines: tuple[MemoryLine, ...]
    """A line for each purpose, the base first."""

    @property
    def accelerator_bytes(self) -> int:
        """Bytes of the accelerator, all lines together."""
        return sum(line.accelerator_bytes for line in self.lines)

    @property
    def host_bytes(self) -> int:
        """Bytes of the host for this rank alone, all lines together."""
        return sum(line.host_bytes for line in self.lines)

    def require(self, memory_bytes: int, *, host_bytes: int | None = None) -> None:
        """Refuse memory that is too small.

        Args:
            memory_bytes: of what the rank computes in: its accelerator, or its part of the host without one.
            host_bytes: of the host for this rank, if it computes on an accelerator; not looked at if None.

        Raises:
            Misconfigured: in one sentence with what is needed and what for.
        """
        where = "accelerator" if self.has_accelerator else "host"
        self._require(where, memory_bytes)
        if self.has_accelerator and host_bytes is not None:
            self._require("host", host_bytes)

    def _require(self, where: str, memory_bytes: int) -> None:
        by_size = sorted(((getattr(line, f"{where}_bytes"), line.part) for line in self.lines), reverse=True)
        needed = sum(num_bytes for num_bytes, _ in by_size)
        if needed <= memory_bytes:
            return
        most = ", ".join(f"{part} {shown_size(num_bytes)}" for num_bytes, part in by_size[:4] if num_bytes)
        ranks = f"each of {self.num_ranks} ranks" if self.num_ranks > 1 else "the only rank"
        raise Misconfigured(
            f"expected {shown_size(needed)} of {where} memory for {ranks}, got "
            f"{shown_size(memory_bytes)}, for a {self.dtype} base of {self.num_params / 1e9:.3g} billion parameters: "
            f"{most}; more ranks, fewer tokens in a forward{self._advice(where)} take less"
        )

    def _advice(self, where: str) -> str:
        return " or offload_param" if where == "accelerator" and not self.is_offloaded else ""
