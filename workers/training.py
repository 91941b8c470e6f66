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
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from editors.methods.options import positive
from pipeline.computing import computing_environment
from pipeline.domain.errors import CorrigendaError, EngineFailed
from pipeline.domain.formats.refusals import refused_in_a_sentence
from pipeline.domain.rank_api import BaseSpec
from pipeline.domain.scratch import scratch_folder
from pipeline.tied import tie_to_parent
from workers.lifetime import RENDEZVOUS, described, first_to_fail, leave_last_words

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

LAUNCHER = "CORRIGENDA_TRAINING_LAUNCHER"
"""Environment variable with the launcher's process id. It makes this program a rank, which ends with the launcher."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as of shells: 128 and SIGINT."""
MONITOR_SECONDS = 0.2
"""How often the launcher looks whether a rank has ended."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Launch the ranks, or train as one of them. Return the exit status: 1 after one sentence on standard error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with refused_in_a_sentence():
        known, rest = _parser().parse_known_args(words)
    if launcher := os.environ.get(LAUNCHER):
        tie_to_parent(int(launcher))  # before torch is imported, which takes seconds
        return _run_rank(known, rest)
    from editors.training.arguments import parsed

    try:
        with refused_in_a_sentence():
            given = parsed(rest)  # what is wrong with the words is said once, and before anything starts
    except CorrigendaError as error:
        _say(str(error))
        return 1
    return _launch(known.ranks, words, given)


def _launch(num_ranks: int, words: Sequence[str], given: argparse.Namespace) -> int:
    """Start the ranks and wait for them; the first that fails ends all. 128 and the signal if one was killed."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes
    from torch.distributed.elastic.multiprocessing.api import SignalException

    logging.disable(logging.CRITICAL)  # the ranks have said what is wrong
    for name in set(os.environ) - set(computing_environment()):
        del os.environ[name]  # the library hands all of this process's environment to the ranks
    with scratch_folder("training") as folder:
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
            # Said before the ranks have ended: `corrigenda train` soon kills a program that was interrupted.
            status = _interrupted(given) if error.sigval == signal.SIGINT else 128 + error.sigval
            ranks.close(error.sigval)
            return status
        return _outcome(found.failures if found else {}, Path(folder))


def _outcome(failures: Mapping[int, ProcessFailure], folder: Path) -> int:
    """Say why a run failed, in the words of the rank that failed first, and return the exit status."""
    # The library ends the others with SIGTERM.
    statuses = {rank: one.exitcode for rank, one in failures.items() if one.exitcode != -signal.SIGTERM}
    if not statuses:
        return 128 + signal.SIGTERM if failures else 0
    rank, said = first_to_fail(folder, statuses)
    _say(said.message if said else f"rank {rank} ended with status {described(statuses[rank])} and said nothing")
    return statuses[rank] if statuses[rank] > 0 else 128 - statuses[rank]


def _interrupted(given: argparse.Namespace) -> int:
    from editors.training.__main__ import stopped

    _say(stopped(given))
    return INTERRUPTED


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

    dtype, config = DTYPES[parsed(words).dtype], known.deepspeed_config
    kept: list[ShardedModel] = []  # the module's hooks live as long as this

    def say(line: str) -> None:
        leave_last_words(Path(os.environ[RENDEZVOUS]).parent, int(os.environ["RANK"]), EngineFailed(line))

    def load(folder: Path, inner_param_names: Sequence[str] = (), *, task: str = "causal") -> EditableModel:
        base = BaseSpec(ref=str(folder), digest="", task=task)
        agreed(comm, lambda: require_memory(base, inner_param_names, config_path=config, comm=comm))
        kept.append(load_sharded(base, config_path=config, dtype=dtype))
        return editable(task, kept[-1].module, kept[-1].tokenizer, inner_param_names, comm=comm)

    try:
        join_group()
        comm = RankComm()
        sys.stdout = told
        options = ["--ranks", str(comm.num_ranks), *(["--deepspeed-config", str(config)] if config else [])]
        return train(words, options=options, load=load, comm=comm, say=say)
    except CorrigendaError as error:
        say(str(error))
    except Exception:
        say(traceback.format_exc())
    return 1


def _say(text: str) -> None:
    print(text.strip(), file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="corrigenda train",
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
