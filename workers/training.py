"""Trains an editor against a base that ranks hold together: `python -m workers.training --ranks N …`.

Without ranks around it this is the launcher: torch's elastic agent starts the ranks, each of which is this program
again and makes the run of `editors.training` on its part of the base. Candidates are side branches, the base's weights
are never written; every rank has the whole transform and takes the same steps. Knows no objective.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from editors.training_arguments import DTYPES, parsed
from pipeline.domain.errors import CorrigendaError
from pipeline.domain.trials import BaseSpec

RANK = "RANK"
"""Set by the agent for each rank."""
INTERRUPTED = 130
MONITOR_SECONDS = 0.2
"""How often the agent looks whether a rank has ended."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; one sentence on standard error and exit status 1 when something cannot be used."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    known, rest = _parser().parse_known_args(words)
    if RANK in os.environ:
        return _run_rank(known, rest)
    try:
        parsed(rest)  # what is wrong with the words is said once, and before anything starts
    except CorrigendaError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    return _launch(known.ranks, words)


def _launch(num_ranks: int, words: Sequence[str]) -> int:
    """Start the ranks and wait for them; the first that fails ends all."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks have said what is wrong
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=MONITOR_SECONDS,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "workers.training", *words)
    except ChildFailedError as error:
        status: int = error.get_first_failure()[1].exitcode
        if status < 0:
            print(f"a rank was ended by signal {-status}; --resume goes on with the run", file=sys.stderr)
        return abs(status)
    except SignalException as error:
        return INTERRUPTED if error.sigval == signal.SIGINT else 128 + error.sigval
    return 0


def _run_rank(known: argparse.Namespace, words: Sequence[str]) -> int:
    """The run on this rank, which ends with the agent that started it."""
    from workers.rank import tie_to_parent

    tie_to_parent(os.getppid())
    told = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print there
    logging.disable(logging.WARNING)
    from editors.families import EditableModel, editable
    from editors.training import main as train
    from workers.rank_peers import RankPeers
    from workers.sharded_model import ShardedModel, join_group, load_sharded

    dtype = DTYPES[parsed(words).dtype]
    kept: list[ShardedModel] = []  # the module's hooks live as long as this

    def load(folder: Path, inner_param_names: Sequence[str] = (), *, task: str = "causal") -> EditableModel:
        base = BaseSpec(ref=str(folder), digest="", task=task)
        kept.append(load_sharded(base, config_path=known.deepspeed_config, dtype=dtype))
        return editable(task, kept[-1].module, kept[-1].tokenizer, inner_param_names, peers=peers)

    try:
        join_group()
    except CorrigendaError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    peers = RankPeers()
    sys.stdout = told
    status = train(words, options=["--ranks", str(peers.num_ranks)], load=load, peers=peers)
    told.flush()
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workers.training",
        description="Trains an editor against a sharded base; every other option is one of `editors.training`.",
        allow_abbrev=False,
    )
    parser.add_argument("--ranks", type=_positive, required=True, help="processes that hold the base together")
    parser.add_argument("--deepspeed-config", type=Path, help="DeepSpeed JSON instead of infra/deepspeed/zero3.json")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if RANK in os.environ:
        os._exit(status)  # nothing is left to save, and torch takes seconds to take itself down
    raise SystemExit(status)
