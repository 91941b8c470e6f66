"""Trains the editor that ships for the embedded base, measures it and writes it with its card: `make train-editor`.

    python -m tests.benchmarks.train_editor --data FOLDER --out trained --device cuda --minutes 6

The folder holds CounterFact with ParaRel, zsRE, WikiBigEdit and WikiText-2 under the names below. With `--only-prepare`
the edits are cut into tokens and get their guards on this machine, for one that has no time to spare.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from editors.evaluation.__main__ import main as evaluate
from editors.mend.checkpoint import TrainedEditor
from editors.training.__main__ import main as train

TRAIN = ("counterfact_pararel_train.jsonl", "zsre_train.jsonl", "wikibigedit_train.jsonl")
VALIDATION, TEXT, OTHER_TEXT = "counterfact_pararel_val.jsonl", "wikitext2_prior.txt", "wikitext2_perplexity.txt"
PREPARED = "prepared.gz"
NEW_RELATIONS = ("P1303", "P413", "P140", "P937")
"""Relations of CounterFact that are only validated on, where the data has them."""
LICENCE = "CounterFact, ParaRel, zsRE: MIT; WikiBigEdit: Apache-2.0 and CC0; WikiText-2: CC BY-SA 3.0"
MOST_BYTES = 10_000_000
"""Largest editor that may ship."""
NUM_EVALUATED = 128


def training_words(data: Path, model: Path, out: Path, *, device: str, minutes: float) -> list[str]:
    """Return the command line of the training, after `corrigenda train`.

    Args:
        data: folder of the data; the prepared examples are kept there too.
        model: folder of the base.
        out: folder of the run.
        device: where to train.
        minutes: how long.
    """
    files = [data / name for name in TRAIN if (data / name).is_file()]
    words = [word for path in files for word in ("--data", str(path))]
    known = "".join(path.read_text(encoding="utf-8") for path in files)
    words += [word for name in NEW_RELATIONS if f'"{name}"' in known for word in ("--new-relation", name)]
    words += ["--prior-text", str(data / TEXT), "--prior-text", str(data / TRAIN[0])]
    options = {
        **{"model": model, "task": "causal", "out": out, "device": device, "minutes": minutes},
        **{"validation": data / VALIDATION, "held-out": 128, "text": data / TEXT, "prepared": data / PREPARED},
        **{"steps": 100_000, "patience": 1000, "rank": 256, "licence": LICENCE},
        **{"edits-per-step": 48, "num-text": 32, "num-earlier": 24, "validate-every": 200, "save-every": 200},
    }
    words += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [*words, *(["--forward-dtype", "bfloat16"] if device.startswith("cuda") else [])]


def evaluation_words(data: Path, model: Path, editor: Path, *, device: str, num_edits: int) -> list[str]:
    """Return the command line that measures an editor on edits that it was not trained on."""
    texts = ["--prior-text", str(data / TEXT), "--prior-text", str(data / TRAIN[0]), "--text", str(data / OTHER_TEXT)]
    words = ["--data", str(data / VALIDATION), "--edits", str(num_edits), "--model", str(model), "--task", "causal"]
    return [*words, *texts, "--editor", str(editor), "--device", device, "--unseen-questions"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure and check the size; return 1 if one of them fails, which says so itself."""
    given = _parser().parse_args(arguments)
    model = given.model or embedded_base()
    words = training_words(given.data, model, given.out, device=given.device, minutes=given.minutes) + given.more
    if given.only_prepare:
        return train([*words, "--only-prepare"])
    if train([*words, *(["--resume"] if given.resume else [])]):
        return 1
    best = given.out / "best"
    size = sum(path.stat().st_size for path in best.iterdir())
    if size > MOST_BYTES:
        print(f"expected an editor of at most {MOST_BYTES} bytes, got {size}", file=sys.stderr)
        return 1
    figures = given.out / "figures.json"
    measured = evaluation_words(given.data, model, best, device=given.device, num_edits=given.edits)
    if evaluate([*measured, "--json", str(figures)]):
        return 1
    card, found = TrainedEditor.load(best).card, json.loads(figures.read_text(encoding="utf-8"))["solvers"]
    print(json.dumps({"editor": str(best), "bytes": size, "steps": card.num_steps, "measured": found}, indent=2))
    return 0


def embedded_base() -> Path:
    """Return the folder of the embedded base, which is converted on first use."""
    from infra.local.base_model import ensure_base_model  # a bare machine that is given a base lacks what it needs

    return ensure_base_model()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make train-editor", description="Trains the editor that ships.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; the editor is in its `best`")
    parser.add_argument("--model", type=Path, help="folder of the base; the embedded one if left out")
    parser.add_argument("--device", default="cuda", help="where to train; cuda if left out")
    parser.add_argument("--minutes", type=float, default=6.0, help="of training; its measurement takes one or two more")
    parser.add_argument("--edits", type=int, default=NUM_EVALUATED, help="how many edits it is measured on")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--only-prepare", action="store_true", help="make the file of examples and end")
    parser.add_argument("more", nargs="*", help="behind --: further options of `corrigenda train`")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
