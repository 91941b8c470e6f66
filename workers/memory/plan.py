"""Count of the memory that one rank needs for a base: `python -m workers.memory.plan --help`.

Nothing is loaded: figures come from shapes, and from constants that say what was measured. Lines are added up although
not all of them are needed at the same moment, so a plan that fits leaves room.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from editors.methods.edit_reading import MOST_LEFT
from editors.methods.options import add_base_options
from editors.models.inner_params import InnerParam
from editors.solve.blocks import BATCHES_PER_FILE
from editors.solve.packing import packed_bytes
from editors.solve.shared_targets import KEY_BITS
from pipeline.domain.errors import CorrigendaError, InvalidInput, Misconfigured
from pipeline.domain.formats.sizes import parse_size
from workers.memory.base_shapes import BaseShapes, read_shapes
from workers.memory.memory_plan import MemoryLine, MemoryPlan, Work

__all__ = ["MemoryLine", "MemoryPlan", "Work", "plan_memory"]

DEFAULT_CONFIG = Path(__file__).parents[2] / "infra" / "deepspeed" / "zero3.json"
OFFLOAD_CONFIG = DEFAULT_CONFIG.with_name("zero3-offload.json")
FP16, FP32, FP64 = 2, 4, 8
"""Bytes of a number of this type."""
PREFETCHED, LIVE = 50_000_000, 1_000_000_000
"""DeepSpeed's defaults of stage3_prefetch_bucket_size and stage3_max_live_parameters."""
PROCESS = 640 * 2**20
"""Python, torch, transformers, DeepSpeed, a tokenizer and their leftovers: a CPU rank of SmolLM2-135M had 398 MiB
resident after its imports, and 640 MiB beside its weights once it was loaded. A CUDA build of torch takes more."""
CONTEXT = 2**30
"""Of an accelerator: CUDA's context and kernels, NCCL's buffers. A usual figure, not measured here."""
HIDDEN_VALUES, WIDEST_VALUES = 12, 3
"""Values of a token that a block keeps for the backward pass, in its hidden and in its widest width. SmolLM2-135M in
fp32 kept 9.2 and 3 under DeepSpeed; the norms of a bf16 model keep two or three more."""
LOGITS_COPIES = 3
"""fp32 copies of the logits at the peak of a backward pass, beside those in the model's dtype; measured."""
ANSWERED_FRAMES = 6
"""Most frames of an edit whose answer tokens are rows: its prompt, a chat, two rephrases and two aliases."""
SHARED_ROW = 12
"""Bytes of a packed row beside its key and what was held there: its shift, its weight's root, and a scale."""
MADE_TOGETHER = 2
"""Most edits that are made at once, in sizes of a batch: its own, and active ones about the same subjects."""
TARGET_TOKENS = 4
"""Tokens of a target, each an edit row where rows are answer tokens: about what a name takes."""
FIGURE_TOKENS = 512
"""Most positions of plain text whose logits are held at once (`editors.measure.quality`)."""
EDIT, EDIT_IN_PARAM = 62, 160
"""Bytes of an active edit in the ledger's lists, and of its place in each inner parameter; measured with 16,384 edits.
Its rows lie on disk, mapped: the system can take their pages back."""
WHOLE_SHIFTS = "whole shifts of the inner weights"


def plan_memory(
    folder: Path,
    *,
    num_ranks: int,
    task: str | None = None,
    editor: Path | None = None,
    inner_param_names: Sequence[str] = (),
    config_path: Path | None = None,
    has_accelerator: bool = True,
    work: Work | None = None,
) -> MemoryPlan:
    """Return what one rank needs to hold and edit a base.

    Args:
        folder: of the base; only its config is read.
        num_ranks: ranks that hold it together.
        task: of the base; what its config declares if None.
        editor: folder of a trained editor, if there is one.
        inner_param_names: weights to edit; those of the editor or the architecture's default when there are none.
        config_path: a DeepSpeed JSON; `infra/deepspeed/zero3.json` if None.
        has_accelerator: whether ranks compute on one; without, everything lies on the host.
        work: how many edits and tokens.

    Raises:
        Misconfigured: if there is no rank, no such model or inner parameter, or no such configuration.
        IntegrityBroken: if the editor is damaged.
    """
    if num_ranks < 1:
        raise Misconfigured(f"expected at least one rank, got {num_ranks}")
    zero = _zero_settings(config_path or DEFAULT_CONFIG)
    shapes = read_shapes(folder, task=task, editor=editor, inner_param_names=inner_param_names)
    planner = _Planner(shapes, num_ranks, zero, work or Work(), has_accelerator)
    return MemoryPlan(
        task=shapes.task,
        dtype=str(shapes.dtype).removeprefix("torch."),
        num_params=shapes.total,
        num_ranks=num_ranks,
        is_offloaded=planner.is_offloaded,
        has_accelerator=has_accelerator,
        inner_params=tuple(param.name for param in shapes.inner),
        lines=tuple(planner.lines()),
    )


class _Planner:
    """The lines of a plan, for the rank with the most to do."""

    def __init__(
        self, shapes: BaseShapes, num_ranks: int, zero: Mapping[str, Any], work: Work, has_accelerator: bool
    ) -> None:
        self._shapes, self._num_ranks, self._zero, self._work = shapes, num_ranks, zero, work
        self._has_accelerator = has_accelerator
        self._item = shapes.dtype.itemsize
        offload: Mapping[str, Any] = zero.get("offload_param") or {}
        self.is_offloaded = offload.get("device", "none") == "cpu"
        self._is_pinned = self.is_offloaded and has_accelerator and bool(offload.get("pin_memory"))
        shares = [shapes.inner[rank::num_ranks] for rank in range(min(num_ranks, len(shapes.inner)))]
        self._solved = max(shares, key=_solve_bytes)

    def lines(self) -> Iterator[MemoryLine]:
        """Return a line for each purpose, the base first."""
        solved = self._solved
        yield self._held("weights (partition)", sum(map(self._part_bytes, self._shapes.numels)))
        yield self._line("weights gathered while they run", device=self._gathered_bytes())
        yield self._held("pristine inner weights and two accumulators", self._inner_bytes())
        yield self._line("solve: A and its factor", host=_solve_bytes(solved))
        yield self._line("solve: both again while edits leave", host=_solve_bytes(solved))
        yield self._line("solve: one A while it is summed, factored", host=max(map(self._making_bytes, solved)))
        yield self._line("solve: factors of the natural gradient", host=sum(p.out_features**2 for p in solved) * FP64)
        yield self._line("prior moments", host=sum(p.in_features**2 + p.out_features**2 for p in solved) * FP32)
        yield self._line("ledger rows", host=self._ledger_bytes(solved))
        yield self._candidate()
        yield self._whole_shifts()
        yield self._line("activations", device=self._activation_bytes())
        yield self._line("beginnings of frames, read once", device=MOST_LEFT * self._shapes.num_kept * self._item)
        yield self._line("logits of target tokens", device=self._logits_bytes())
        yield self._line("the process itself", device=CONTEXT if self._has_accelerator else 0, host=PROCESS)

    def _line(self, part: str, *, device: int = 0, host: int = 0) -> MemoryLine:
        """Return a line; `device` is what the rank computes in."""
        if not self._has_accelerator:
            device, host = 0, device + host
        return MemoryLine(part=part, accelerator_bytes=device, host_bytes=host)

    def _held(self, part: str, num_bytes: int) -> MemoryLine:
        """Return a line of what lies where the partitions are."""
        return self._line(part, **{"host" if self.is_offloaded else "device": num_bytes})

    def _part_bytes(self, numel: int) -> int:
        num_bytes = -(-numel // self._num_ranks) * self._item
        # torch pins in blocks of a power of two, and DeepSpeed pins each partition by itself.
        return 1 << (num_bytes - 1).bit_length() if self._is_pinned else num_bytes

    def _gathered_bytes(self) -> int:
        """Every submodule that begins prefetches another bucket, as long as fewer than the most are live."""
        if self._num_ranks == 1 and not (self.is_offloaded and self._has_accelerator):
            return 0
        unit = max(self._shapes.largest_block, *self._shapes.numels)
        live = int(self._zero.get("stage3_max_live_parameters", LIVE))
        bucket = min(int(self._zero.get("stage3_prefetch_bucket_size", PREFETCHED)), live, self._shapes.total)
        if bucket == 0:
            return unit * self._item
        # A bucket is there twice while its parts are joined. SmolLM2-135M on two ranks: 615 MiB measured, 704 planned.
        return (min(max(live, unit) + unit, self._shapes.total) + bucket) * self._item

    def _inner_bytes(self) -> int:
        """The base's slice, and an fp32 accumulator of what is held and one of the candidate."""
        parts = (-(-_size(param) // self._num_ranks) for param in self._shapes.inner)
        return sum(part * (self._item + 2 * FP32) for part in parts)

    def _num_shifts(self, param: InnerParam, num_edits: int) -> int:
        """Columns of a delta: frames share them."""
        return num_edits * (1 if param.name in self._shapes.subject_params else TARGET_TOKENS)

    def _num_rows(self, param: InnerParam, num_edits: int) -> int:
        """Rows of all frames and guards; where they are answer tokens, of the frames that are answered."""
        is_subject = param.name in self._shapes.subject_params
        frames = self._work.num_frames if is_subject else min(self._work.num_frames, ANSWERED_FRAMES)
        return self._num_shifts(param, num_edits) * frames + num_edits * self._work.num_guards

    def _rows_bytes(self, params: Sequence[InnerParam], num_edits: int) -> int:
        """A key and a target of each row, as they are stored; a shift is kept once for the rows of all frames."""
        if self._work.num_frames == 1:
            return sum(self._num_rows(p, num_edits) * (p.in_features + p.out_features) * FP32 for p in params)
        shifts = sum(self._num_shifts(p, num_edits) * p.out_features * FP32 for p in params)
        return shifts + sum(self._num_rows(p, num_edits) * self._packed_row_bytes(p) for p in params)

    def _packed_row_bytes(self, param: InnerParam) -> int:
        held = FP32 if param.name in self._shapes.subject_params else FP16
        return packed_bytes(param.in_features, bits=KEY_BITS) + param.out_features * held + SHARED_ROW

    def _shifts_bytes(self, params: Sequence[InnerParam], num_edits: int, item: int) -> int:
        """F and D of each shift."""
        return sum(self._num_shifts(p, num_edits) * (p.in_features + p.out_features) * item for p in params)

    def _making_bytes(self, param: InnerParam) -> int:
        """A once more while it is factored; or, before that, a square's worth of a block's keys and two squares."""
        width = param.in_features
        square, num_rows = width**2 * FP64, self._num_rows(param, self._work.num_edits)
        batch = self._num_rows(param, min(MADE_TOGETHER * self._work.batch_size, self._work.num_edits))
        # Keys of a batch join those that wait for a whole square; then they are there in fp64 too.
        block = min(num_rows, width) * width * (FP32 + FP64) + 2 * batch * width * FP32
        return max(square, 2 * square + block if num_rows else 0)

    def _ledger_bytes(self, params: Sequence[InnerParam]) -> int:
        """The rows of the newest batches, which are not on disk yet, and what is known of each edit."""
        newest = min(self._work.num_edits, BATCHES_PER_FILE * MADE_TOGETHER * self._work.batch_size)
        known = EDIT + EDIT_IN_PARAM * len(self._shapes.inner)
        return self._rows_bytes(params, newest) + self._work.num_edits * known

    def _candidate(self) -> MemoryLine:
        """F and D of every inner parameter: in the side branch fp32, while they are found fp64 with the keys of all
        rows and what solves keep of them, then fp32 as delta, and the rows."""
        inner, num_edits = self._shapes.inner, MADE_TOGETHER * self._work.batch_size
        branch = self._shifts_bytes(inner, num_edits, FP32)
        sizes = [self._num_rows(param, num_edits) * param.in_features for param in inner]
        rows_of = [(self._num_rows(param, num_edits), param.in_features) for param in self._solved]
        kept = sum(num_rows * (width + num_rows) for num_rows, width in rows_of)
        keys = sum(sizes) * FP32 + (max(sizes) + kept) * FP64  # of one inner parameter they are solved with
        network = self._shapes.num_editor_params * FP32
        rows = self._rows_bytes(inner, num_edits)
        host = self._shifts_bytes(inner, num_edits, FP64) + keys + branch + rows
        return self._line("candidate: F, D and the editor's network", device=branch + network, host=host)

    def _whole_shifts(self) -> MemoryLine:
        """Accumulators of all ranks: fp64 on the host while edits leave, fp32 where partitions are when they are kept.

        No forward runs meanwhile: where one has room, only what these take beyond it counts. Where ranks share a model,
        its whole shift lies beside the weights while the base is asked, and forwards run then.
        """
        sizes = [_size(param) for param in self._shapes.inner]
        host, device, negative = sum(sizes) * FP64, max(sizes) * FP64, 0
        if self._num_ranks > 1:
            device = max((sum(sizes) + max(sizes)) * FP32, 2 * max(sizes) * FP64)
            negative = sum(sizes) * FP32
        if self.is_offloaded and self._has_accelerator:
            return self._line(WHOLE_SHIFTS, host=host + device)
        return self._line(WHOLE_SHIFTS, device=max(device - self._forward_bytes(), negative), host=host)

    def _forward_bytes(self) -> int:
        return self._gathered_bytes() + self._activation_bytes() + self._logits_bytes()

    def _activation_bytes(self) -> int:
        values = HIDDEN_VALUES * self._shapes.hidden + WIDEST_VALUES * self._shapes.widest
        return self._work.num_tokens * self._shapes.num_graph_blocks * values * self._item

    def _logits_bytes(self) -> int:
        num_tokens = self._work.num_tokens
        num_targets = max(min(num_tokens, FIGURE_TOKENS), num_tokens // TARGET_TOKENS)
        return num_targets * self._shapes.vocabulary * (self._item + LOGITS_COPIES * FP32)


def _size(param: InnerParam) -> int:
    return param.in_features * param.out_features


def _solve_bytes(params: Sequence[InnerParam]) -> int:
    """A and its Cholesky factor of some inner parameters: a square, and the diagonal that is in both."""
    return sum((param.in_features**2 + param.in_features) * FP64 for param in params)


def _zero_settings(path: Path) -> Mapping[str, Any]:
    """`zero_optimization` of a DeepSpeed configuration; the ranks check the rest of it when they load a base."""
    try:
        zero = json.loads(path.read_text(encoding="utf-8"))["zero_optimization"]
        device = (zero.get("offload_param") or {}).get("device", "none")
        numbers = [int(zero.get(key, 0)) for key in ("stage3_prefetch_bucket_size", "stage3_max_live_parameters")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Misconfigured(f"expected a DeepSpeed configuration of ZeRO-3 at {path}, got: {error!r}") from error
    if device not in ("none", "cpu") or min(numbers) < 0:
        raise Misconfigured(f"expected offload_param to cpu or none and no negative size in {path}, got {zero}")
    return zero  # type: ignore[no-any-return]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a plan as JSON, with why it does not fit, if so; one sentence and exit status 1 if there is no plan."""
    try:
        given = _parsed(arguments)
        plan = plan_memory(
            given.model,
            num_ranks=given.ranks,
            task=given.task,
            editor=given.editor,
            inner_param_names=given.inner_param,
            config_path=OFFLOAD_CONFIG if given.offload else given.deepspeed_config,
            has_accelerator=not given.cpu,
            work=Work(batch_size=given.batch_size, num_edits=given.num_edits, num_tokens=given.tokens),
        )
    except CorrigendaError as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    totals = {"accelerator_bytes": plan.accelerator_bytes, "host_bytes": plan.host_bytes}
    totals |= {"memory_bytes": given.memory}
    print(json.dumps(asdict(plan) | totals | {"refusal": _refusal(plan, given.memory, given.host_memory)}))
    return 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line, checked."""
    given = _parser().parse_args(arguments)
    for name in ("ranks", "batch_size", "num_edits", "tokens"):
        if (count := getattr(given, name)) < 1:
            raise InvalidInput(f"expected --{name.replace('_', '-')} of at least 1, got {count}")
    if given.editor is not None and given.inner_param:
        raise InvalidInput("expected either --inner-param or a trained editor, which names its own weights; got both")
    return given


def _refusal(plan: MemoryPlan, memory_bytes: int, host_bytes: int | None) -> str | None:
    try:
        plan.require(memory_bytes, host_bytes=host_bytes)
    except Misconfigured as error:
        return str(error)
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="corrigenda lineage plan", description=main.__doc__)
    add_base_options(parser, task=None)
    parser.add_argument("--ranks", type=int, required=True, help="ranks that hold it together")
    parser.add_argument("--memory", type=parse_size, required=True, help="of a rank: 24GB, 512MiB or bytes")
    parser.add_argument("--host-memory", type=parse_size, help="of the host for each rank; not looked at if left out")
    parser.add_argument("--cpu", action="store_true", help="ranks compute on the host: --memory is the host's")
    parser.add_argument("--offload", action="store_true", help="weights lie on the host between uses")
    parser.add_argument("--deepspeed-config", type=Path, help="DeepSpeed JSON instead of infra/deepspeed/zero3.json")
    parser.add_argument("--editor", type=Path, help="folder of a trained editor")
    parser.add_argument("--inner-param", action="append", default=[], help="a weight to edit; may be repeated")
    usual = Work()
    parser.add_argument("--batch-size", type=int, default=usual.batch_size, help="most edits in a batch")
    parser.add_argument("--num-edits", type=int, default=usual.num_edits, help="active edits in the ledger")
    parser.add_argument("--tokens", type=int, default=usual.num_tokens, help="most padded tokens of a forward")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
