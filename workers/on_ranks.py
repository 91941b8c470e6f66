"""Trains or measures an editor on a base that ranks hold together: `python -m workers.on_ranks training --ranks N …`.

Without ranks around it this is the launcher: torch's elastic library starts the ranks, each of which is this program
again and makes the run of `editors.training` or `editors.evaluation` on its part of the base. In a training candidates
are side branches, no weight is written, and every rank has the whole transform and takes the same steps. In an
evaluation every rank writes its part of the edited weights and solves for a share of them.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from editors.methods.options import positive
from pipeline.computing import computing_environment
from pipeline.domain.errors import CorrigendaError, EngineFailed
from pipeline.domain.formats.refusals import INTERRUPTED, refused_in_a_sentence
from pipeline.domain.rank_api import BaseSpec
from pipeline.domain.scratch import scratch_folder
from pipeline.tied import tie_to_parent
from workers.lifetime import RENDEZVOUS, described, first_to_fail, leave_last_words

if TYPE_CHECKING:
    import torch
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    from editors.models.comm import Comm
    from editors.models.families import EditableModel
    from workers.rank.sharded_model import ShardedModel

EVALUATION = "evaluation"
COMMANDS = {"training": "corrigenda train", EVALUATION: "corrigenda evaluate"}
"""Programs that ranks may run together, and the commands that people type."""
Say = Callable[[str], None]
LAUNCHER = "CORRIGENDA_RANKS_LAUNCHER"
"""Environment variable with the launcher's process id. It makes this program a rank, which ends with the launcher."""
MONITOR_SECONDS = 0.2
"""How often the launcher looks whether a rank has ended."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Launch the ranks, or be one of them. Return the exit status: 1 after one sentence on standard error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with refused_in_a_sentence():
        known, rest = _parser(words).parse_known_args(words)
    if launcher := os.environ.get(LAUNCHER):
        tie_to_parent(int(launcher))  # before torch is imported, which takes seconds
        return _run_rank(known, rest)
    try:
        with refused_in_a_sentence():
            stopped = _read(known.program, rest)
    except CorrigendaError as error:
        _say(str(error))
        return 1
    return _launch(known.ranks, words, stopped)


def _read(program: str, words: Sequence[str]) -> Callable[[], str]:
    """Read a command line, so that what is wrong with it is said once and before anything starts.

    Returns:
        What says of the run that it was interrupted.
    """
    if program == EVALUATION:
        from editors.evaluation.arguments import parser

        parser().parse_args(words)
        return lambda: "stopped"
    from editors.training.arguments import parsed

    given = parsed(words)

    def stopped() -> str:
        from editors.training.__main__ import stopped

        return stopped(given)

    return stopped


def _launch(num_ranks: int, words: Sequence[str], stopped: Callable[[], str]) -> int:
    """Start the ranks and wait for them; the first that fails ends all. 128 and the signal if one was killed."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes
    from torch.distributed.elastic.multiprocessing.api import SignalException

    logging.disable(logging.CRITICAL)  # the ranks have said what is wrong
    for name in set(os.environ) - set(computing_environment()):
        del os.environ[name]  # the library hands all of this process's environment to the ranks
    with scratch_folder("ranks") as folder:
        shared = {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks), LAUNCHER: str(os.getpid())}
        shared[RENDEZVOUS] = str(Path(folder) / "rendezvous")
        ranks = start_processes(
            name="ranks",
            entrypoint=sys.executable,
            args={rank: ("-m", "workers.on_ranks", *words) for rank in range(num_ranks)},
            envs={rank: shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_ranks)},
            logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        )
        try:
            found = ranks.wait(period=MONITOR_SECONDS)
        except SignalException as error:  # the library turns signals into it
            # Said before the ranks have ended: a command soon kills its program when it is interrupted.
            if error.sigval == signal.SIGINT:
                _say(stopped())
            status = INTERRUPTED if error.sigval == signal.SIGINT else 128 + error.sigval
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


def _run_rank(known: argparse.Namespace, words: Sequence[str]) -> int:
    """Make the run on this rank and return its exit status."""
    told = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print there
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    from editors.models.comm import agreed
    from editors.models.families import editable
    from workers.memory.memory_check import require_memory
    from workers.rank.rank_comm import RankComm

    sys.modules["mlflow"] = None  # type: ignore[assignment]  # as in workers.rank: DeepSpeed would import it
    from workers.rank.sharded_model import join_group, load_sharded

    config: Path | None = known.deepspeed_config
    kept: list[ShardedModel] = []  # the module's hooks live as long as this

    def say(line: str) -> None:
        leave_last_words(Path(os.environ[RENDEZVOUS]).parent, int(os.environ["RANK"]), EngineFailed(line))

    def load(
        folder: Path, names: Sequence[str] = (), *, task: str = "causal", dtype: torch.dtype | None = None
    ) -> EditableModel:
        base = BaseSpec(ref=str(folder), digest="", task=task)
        agreed(comm, lambda: require_memory(base, names, config_path=config, comm=comm))
        kept.append(load_sharded(base, config_path=config, dtype=dtype))
        return editable(task, kept[-1].module, kept[-1].tokenizer, names, comm=comm)

    try:
        join_group()
        comm = RankComm()
        sys.stdout = told
        if known.program == EVALUATION:
            return _evaluate(words, load, kept, comm, say)
        options = ["--ranks", str(comm.num_ranks), *(["--deepspeed-config", str(config)] if config else [])]
        return _train(words, options, load, comm, say)
    except CorrigendaError as error:
        say(str(error))
    except Exception:
        say(traceback.format_exc())
    return 1


def _train(
    words: Sequence[str], options: Sequence[str], load: Callable[..., EditableModel], comm: Comm, say: Say
) -> int:
    from editors.training.__main__ import main as train
    from editors.training.arguments import DTYPES, parsed

    dtype = DTYPES[parsed(words).dtype]
    return train(words, options=options, load=partial(load, dtype=dtype), comm=comm, say=say)


def _evaluate(
    words: Sequence[str], load: Callable[..., EditableModel], kept: Sequence[ShardedModel], comm: Comm, say: Say
) -> int:
    from editors.evaluation.__main__ import main as evaluate
    from editors.evaluation.place import Place
    from workers.rank.sharded_weights import ShardedWeights

    place = Place(
        load=lambda folder, names, *, task, device: load(folder, names, task=task),
        weights_of=lambda model: ShardedWeights(kept[-1], model.inner),
        comm=comm,
        is_shared=True,
    )
    return evaluate(words, place=place, say=say)


def _say(text: str) -> None:
    print(text.strip(), file=sys.stderr, flush=True)


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMANDS.get(words[0] if words else "", "python -m workers.on_ranks"),
        description="Runs a program on a sharded base; every other option is one of `editors.PROGRAM`.",
        allow_abbrev=False,
    )
    parser.add_argument("program", choices=sorted(COMMANDS))
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
