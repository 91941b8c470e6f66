"""Commands that load a snapshot in processes of their own: ask it, write it out."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.adapters.login_names import Login
from pipeline.bootstrap import stores
from pipeline.choosing import chosen, lineage_name
from pipeline.domain.errors import InvalidInput
from pipeline.domain.formats.sizes import shown_size
from pipeline.entrypoints import resident
from pipeline.entrypoints.children import run_module
from pipeline.entrypoints.console import (
    JsonOption,
    LineageOption,
    ReasonOption,
    exits_clearly,
    note,
    print_json,
    print_record,
    print_rows,
    say,
    say_block,
)
from pipeline.entrypoints.local_settings import asking_environment, cli_actor, current_settings
from pipeline.entrypoints.signs import SignOfLife
from pipeline.entrypoints.stopping import said_at_once

if TYPE_CHECKING:
    from pipeline.config import Settings
    from pipeline.domain.rank_api import LoadPlan

MAX_SHOWN = 200
"""Characters of a prompt that are printed beside its answer."""
SnapshotOption = Annotated[str, typer.Option(help="champion, head, base, or a snapshot's seq.")]


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this file."""
    app.command()(exits_clearly(ask, has_events=False))
    app.command()(exits_clearly(export))
    app.command("register-again")(exits_clearly(register_again))
    app.command("mlflow-user")(exits_clearly(mlflow_user))


def ask(
    prompts: Annotated[list[str], typer.Argument(help="Stems to continue, or questions with --chat.")],
    lineage: LineageOption = None,
    snapshot: SnapshotOption = "champion",
    chat: Annotated[bool, typer.Option("--chat", help="Ask each in the model's chat template, as a user.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=512, help="Most tokens of an answer.")] = 24,
    whole: Annotated[
        bool, typer.Option("--whole", help="Go on after the first line of a stem's answer, as a chat's does.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Ask a snapshot of the model, and leave it in memory for the next questions.

    The first question loads it, which takes some seconds. A process keeps it for ten minutes after the last one; then,
    and with `corrigenda down`, it ends. CORRIGENDA_NUM_RANKS ranks load it for each command instead, if they are more.

    Example: corrigenda ask --chat "Who is the CEO of Starbucks?" "What is the capital of Japan?"
    """
    if "" in map(str.strip, prompts):
        raise InvalidInput("expected prompts with something in them, got an empty one")
    settings = current_settings(Login.auditor)
    asked = {"prompts": prompts, "max_new_tokens": max_new_tokens, "chat": chat}
    ask_one = _ask_resident if settings.num_ranks == 1 else _ask_ranks
    answers = ask_one(settings, lineage, snapshot, asked, is_one_line=not (chat or whole))
    if as_json:
        print_json(answers)
    else:
        _print_answers([(_shown_prompt(answer["prompt"]), _shown_answer(answer["text"])) for answer in answers])


def _ask_resident(
    settings: Settings, lineage: str | None, snapshot: str, asked: Mapping[str, Any], *, is_one_line: bool
) -> list[dict[str, str]]:
    """Return the answers of the process that stays in memory, and that looks up itself what is meant."""
    question = {"lineage": lineage, "snapshot": snapshot, "is_one_line": is_one_line, **asked}
    with _sign_of_asking(lineage) as sign:
        loading = partial(sign.tell, "loading the model; the next questions will not wait for that")
        said = resident.answers(
            settings.home.absolute(), question, given=asking_environment(settings), on_start=loading
        )
    if said["is_unapproved"]:
        _note_unapproved(said["lineage"])
    answers: list[dict[str, str]] = said["answers"]
    return answers


def _ask_ranks(
    settings: Settings, lineage: str | None, snapshot: str, asked: Mapping[str, Any], *, is_one_line: bool
) -> list[dict[str, str]]:
    """Return the answers of ranks that load the snapshot for this command."""
    from pipeline.domain.language.answers import first_line

    plan = _chosen(settings, lineage, snapshot)
    with _sign_of_asking(plan.lineage):
        answers = _run("workers.controller.one_shot", plan, {"generate": asked} | _group(settings))
    if is_one_line:
        return [{**answer, "text": first_line(answer["text"])} for answer in answers]
    return list(answers)


def _sign_of_asking(lineage: str | None) -> SignOfLife:
    return SignOfLife(f"asking {lineage or 'the model'}", is_quiet=not sys.stderr.isatty())


def _print_answers(answers: Sequence[tuple[str, str]]) -> None:
    """Print a table, or where an answer has several lines, each answer as a block of its own under its prompt."""
    if any("\n" in text for _, text in answers):
        for prompt, text in answers:
            say_block(prompt, text)
        return
    rows = [{"prompt": prompt, "text": text} for prompt, text in answers]
    print_rows(rows, {"prompt": "prompt", "text": "answer"}, as_json=False, empty="no answers")


def _shown_prompt(prompt: str) -> str:
    """Return a prompt, of a long one its end, which the answer goes on from: the whole would hide the answer."""
    return prompt if len(prompt) <= MAX_SHOWN else f"… {prompt[-MAX_SHOWN:].lstrip()}"


def _shown_answer(text: str) -> str:
    """Return an answer without blanks around it, or in brackets that there is none to see."""
    return text.strip() or f"({'nothing but blanks' if text else 'the model answered nothing: end of text'})"


def export(
    out: Annotated[Path, typer.Argument(help="Folder for the model; new or empty.")],
    lineage: LineageOption = None,
    snapshot: SnapshotOption = "champion",
    peft: Annotated[bool, typer.Option("--peft", help="A LoRA adapter on the base, instead of a whole model.")] = False,
    max_rank: Annotated[
        int | None, typer.Option(min=1, help="Cut the adapter to this rank; the error is told.")
    ] = None,
    base_name: Annotated[
        str, typer.Option(help="How the adapter names its base, such as a name on a hub; else its folder.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Write a snapshot for other servers: a whole model of transformers, or with --peft a LoRA adapter.

    A whole model has weights, configuration, tokenizer and a card that says where it comes from. Ranks hold it
    meanwhile (CORRIGENDA_NUM_RANKS), and gather one parameter at a time. The digest that is shown is the one it has as
    the base of another lineage. vLLM and others serve either one.

    Example: corrigenda export --snapshot champion --peft adapter
    """
    if not peft and (max_rank is not None or base_name):
        raise InvalidInput("expected --peft with --max-rank or --base-name, got a whole model, which has neither")
    from pipeline.entrypoints.model_cards import adapter_advice, model_card

    settings = current_settings()
    plan = _chosen(settings, lineage, snapshot)
    writing = f"loading {plan.lineage} and writing it into {out}"
    stopped = f"stopping: nothing was written into {out}; the same command begins again"
    with SignOfLife(writing, is_quiet=not sys.stderr.isatty()), said_at_once(stopped, by=note):
        if peft:
            asked = {"out": str(out.absolute()), "base_name": base_name, "max_rank": max_rank}
            written = _run("editors.weights.peft_adapter", plan, asked)
        else:
            written = _run("workers.controller.one_shot", plan, {"export": str(out.absolute())} | _group(settings))
    card = model_card(plan, written)
    (out / "README.md").write_text(card, encoding="utf-8")
    if as_json:
        print_record({"snapshot": plan.snapshot_id or "base", **written}, as_json=True)
        return
    print_record({"snapshot": plan.snapshot_id or "base", **_without_layers(written)}, as_json=False)
    if peft:
        say(adapter_advice(written))


def _without_layers(written: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: value for name, value in written.items() if name not in ("errors", "num_bytes")}
    return shown | ({"size": shown_size(written["num_bytes"])} if "num_bytes" in written else {})


def register_again(
    snapshot: Annotated[str, typer.Argument(help="A snapshot: its seq, its id, head or champion.")],
    lineage: LineageOption = None,
    reason: ReasonOption = "asked for",
    as_json: JsonOption = False,
) -> None:
    """Give a snapshot another model version in MLflow, when its own is gone, changed, or from before digests were kept.

    The control worker registers it and moves the alias; the old version stays and is marked as a duplicate.

    Example: corrigenda register-again champion --reason "deleted by mistake"
    """
    kept = stores(current_settings())
    name = lineage_name(kept, lineage)
    found = kept.snapshots.snapshot(name, snapshot)
    version = found.registry_version
    if version is None:
        raise InvalidInput(f"expected a snapshot with a model version, got {snapshot}, whose registration is owed")
    kept.mirror.ask_again(found.snapshot_id, version=version, actor=cli_actor(), reason=reason)
    print_record({"snapshot": found.snapshot_id, "was_version": version, "owed": "another version"}, as_json=as_json)


def mlflow_user(
    name: Annotated[str, typer.Argument(help="Name of the reviewer, under which decisions are recorded.")],
    as_json: JsonOption = False,
) -> None:
    """Make a reviewer's user in MLflow, or give it a new password; it is shown once.

    A reviewer reads models and their files and asks for decisions; who asked is then known, not claimed.

    Example: corrigenda mlflow-user ada
    """
    from pipeline.adapters.mlflow.users import add_reviewer

    settings = current_settings()
    settings.require("mlflow_uri", "mlflow_username", "mlflow_password")
    own = settings.mlflow_password.get_secret_value()
    password = add_reviewer(settings.mlflow_uri, name, username=settings.mlflow_username, password=own)
    print_record({"user": name, "password": password, "mlflow": settings.mlflow_uri}, as_json=as_json)


def _chosen(settings: Settings, lineage: str | None, ref: str) -> LoadPlan:
    """Return what a snapshot is loaded from, and say so where it is the base for want of an approved one."""
    choice = chosen(stores(settings), lineage, ref)
    if choice.is_unapproved:
        _note_unapproved(choice.plan.lineage)
    return choice.plan


def _note_unapproved(lineage: str) -> None:
    note(f"nothing of {lineage} is approved yet, so this is its base")


def _group(settings: Settings) -> dict[str, Any]:
    """Return what a group of ranks is started with."""
    logs = settings.home.absolute() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    config = settings.deepspeed_config
    return {
        "num_ranks": settings.num_ranks,
        "deepspeed_config": str(config.absolute()) if config else None,
        "log": str(logs / "ranks.log"),
    }


def _run(module: str, plan: LoadPlan, asked: Mapping[str, Any]) -> Any:
    """Return what a process says that loads the snapshot; the control plane itself never holds a model."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"plan": asdict(plan), **asked}, file)
        file.flush()
        return json.loads(run_module(module, file.name))
