"""Trains an editor against a base that ranks hold together: `python -m workers.training --ranks N …`.

Without ranks around it this is the launcher: torch's elastic library starts the ranks, each of which is this program
again and makes the run of `editors.training` on its part of the base. Candidates are side branches, the base's weights
are never written; every rank has the whole transform and takes the same steps.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from editors.methods.options import positive
from pipeline.domain.errors import CorrigendaError
from pipeline.domain.rank_api import BaseSpec
from workers.lifetime import RENDEZVOUS, tie_to_parent

LAUNCHER = "CORRIGENDA_TRAINING_LAUNCHER"
"""Environment variable with the launcher's process id. It makes this program a rank, which ends with the launcher."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as of shells: 128 and SIGINT."""
MONITOR_SECONDS = 0.2
"""How often the launcher looks whether a rank has ended."""
SIGNAL_SECONDS = 1.0
"""What the first rank waits after an error: one that another rank left behind by ending on the same signal."""
HEARING_SECONDS = 3.0
"""What a rank other than the first waits before it says what is wrong: mostly the first has said it, and all end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Launch the ranks, or train as one of them. Return the exit status: 1 after one sentence on standard error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    known, rest = _parser().parse_known_args(words)
    if launcher := os.environ.get(LAUNCHER):
        tie_to_parent(int(launcher))  # before torch is imported, which takes seconds
        return _run_rank(known, rest)
    from editors.training.arguments import parsed

    try:
        parsed(rest)  # what is wrong with the words is said once, and before anything starts
    except CorrigendaError as error:
        _say(error)
        return 1
    return _launch(known.ranks, words)


def _launch(num_ranks: int, words: Sequence[str]) -> int:
    """Start the ranks and wait for them; the first that fails ends all. 128 and the signal if one was killed."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes
    from torch.distributed.elastic.multiprocessing.api import SignalException

    logging.disable(logging.CRITICAL)  # the ranks have said what is wrong
    with tempfile.TemporaryDirectory(prefix="corrigenda-") as folder:
        shared = {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks), LAUNCHER: str(os.getpid())}
        shared[RENDEZVOUS] = str(Path(folder) / "rendezvous")
        ranks = start_processes(
            name="training",
            entrypoint=sys.executable,
            args={rank: ("-m", "workers.training", *words) for rank in range(num_ranks)},
            envs={rank: shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_ranks)},
            logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        )
        try:
            found = ranks.wait(period=MONITOR_SECONDS)
        except SignalException as error:  # the library turns signals into it
            ranks.close(error.sigval)
            return INTERRUPTED if error.sigval == signal.SIGINT else 128 + error.sigval
    if found is None or not found.failures:
        return 0
    status: int = min(found.failures.values(), key=lambda failure: failure.timestamp).exitcode
    return status if status > 0 else 128 - status


def _run_rank(known: argparse.Namespace, words: Sequence[str]) -> int:
    """Train on this rank and return its exit status."""
    told = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print there
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    from editors.models.comm import agreed
    from editors.models.families import EditableModel, editable
    from editors.training.__main__ import main as train
    from editors.training.arguments import DTYPES, parsed
    from workers.memory.memory_check import require_memory
    from workers.rank.rank_comm import RankComm

    sys.modules["mlflow"] = None  # type: ignore[assignment]  # as in workers.rank: DeepSpeed would import it
    from workers.rank.sharded_model import ShardedModel, join_group, load_sharded

    is_first = os.environ["RANK"] == "0"
    if not is_first:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))  # the first one says it
    dtype, config = DTYPES[parsed(words).dtype], known.deepspeed_config
    kept: list[ShardedModel] = []  # the module's hooks live as long as this

    def say(line: str | CorrigendaError) -> None:
        if not is_first:
            time.sleep(HEARING_SECONDS)
        _say(line)

    def load(folder: Path, inner_param_names: Sequence[str] = (), *, task: str = "causal") -> EditableModel:
        base = BaseSpec(ref=str(folder), digest="", task=task)
        agreed(comm, lambda: require_memory(base, inner_param_names, config_path=config, comm=comm))
        kept.append(load_sharded(base, config_path=config, dtype=dtype))
        return editable(task, kept[-1].module, kept[-1].tokenizer, inner_param_names, comm=comm)

    try:
        join_group()
    except CorrigendaError as error:
        say(error)
        return 1
    comm = RankComm()
    sys.stdout = told
    options = ["--ranks", str(comm.num_ranks), *(["--deepspeed-config", str(config)] if config else [])]
    try:
        return _outcome(lambda: train(words, options=options, load=load, comm=comm, say=say), is_first=is_first)
    except KeyboardInterrupt:
        _say("stopped; --resume goes on from the last state")
        return INTERRUPTED


def _outcome(run: Callable[[], int], *, is_first: bool) -> int:
    """What a run comes to; an error waits for what may be behind it: a signal, or the end of the first rank."""
    try:
        return run()
    except Exception:
        time.sleep(SIGNAL_SECONDS if is_first else HEARING_SECONDS)
        raise


def _say(line: str | CorrigendaError) -> None:
    print(" ".join(str(line).split()), file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workers.training",
        description="Trains an editor against a sharded base; every other option is one of `editors.training`.",
        allow_abbrev=False,
    )
    parser.add_argument("--ranks", type=positive, required=True, help="processes that hold the base together")
    parser.add_argument("--deepspeed-config", type=Path, help="DeepSpeed JSON instead of infra/deepspeed/zero3.json")
    return parser


if __name__ == "__main__":
    try:
        status = main()
    except KeyboardInterrupt:
        status = INTERRUPTED
    sys.stdout.flush()
    sys.stderr.flush()
    if LAUNCHER in os.environ and "RANK" in os.environ:
        os._exit(status)  # nothing is left to save, and torch takes seconds to take itself down
    raise SystemExit(status)
