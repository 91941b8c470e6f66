"""Commands that make, list, hold and resume lineages, and keep them good as they grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.local import LocalStack
from pipeline.bootstrap import Stores, stores
from pipeline.domain.errors import InvalidInput
from pipeline.domain.formats.counting import counted
from pipeline.domain.gates import GatePolicy
from pipeline.domain.ledger.upkeep import Resolving, Upkeep
from pipeline.domain.lineages import Lineage, check_name
from pipeline.domain.rank_api import RANGES
from pipeline.domain.review.policies import MAX_APPROVERS, NAMED, changed_policy, named
from pipeline.entrypoints.cli import folding, policy, programs
from pipeline.entrypoints.console import JsonOption, ReasonOption, exits_clearly, note, print_json, print_rows, say
from pipeline.entrypoints.local_settings import cli_actor, current_settings, deciding_actor, reviewing_settings
from pipeline.entrypoints.preparation import DEFAULT_FACTS, make_lineage, prepare_base
from pipeline.entrypoints.processes import start_edit_worker
from pipeline.entrypoints.signs import SignOfLife
from pipeline.entrypoints.stopping import said_at_once

TASKS = ("causal", "seq2seq", "classifier")
NO_EDITOR = "none"
MOST_LISTED = 4


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this file."""
    lineage = typer.Typer(help="Edited models, each under one name.", no_args_is_help=True)
    lineage.command("create")(exits_clearly(lineage_create))
    lineage.command("list")(exits_clearly(lineage_list))
    lineage.command("hold")(exits_clearly(lineage_hold))
    lineage.command("resume")(exits_clearly(lineage_resume))
    lineage.command("approvals")(exits_clearly(lineage_approvals))
    lineage.command("rekey")(exits_clearly(lineage_rekey))
    lineage.command("upkeep")(exits_clearly(lineage_upkeep))
    policy.add_commands(lineage)
    folding.add_commands(lineage)
    programs.add_plan(lineage)
    app.add_typer(lineage, name="lineage")


def lineage_create(
    name: Annotated[str, typer.Argument(help="Unique, without /, : and blanks; also the registered model's name.")],
    model: Annotated[Path | None, typer.Option(help="Folder of the base; the embedded SmolLM2 if left out.")] = None,
    task: Annotated[
        str | None, typer.Option(help="causal, seq2seq or classifier; what the model's config declares if left out.")
    ] = None,
    editor: Annotated[
        str | None,
        typer.Option(help="Folder of a trained editor, or none; if left out one that ships and knows frames, or none."),
    ] = None,
    suite: Annotated[Path, typer.Option(help="JSONL of locality probes.")] = DEFAULT_FACTS / "suite.jsonl",
    text: Annotated[Path, typer.Option(help="Plain text for perplexity.")] = DEFAULT_FACTS / "perplexity.txt",
    prior_text: Annotated[
        list[Path] | None, typer.Option(help="Lines, or edits, for the prior; repeatable, each file counts alike.")
    ] = None,
    inner_param: Annotated[list[str] | None, typer.Option(help="A weight to edit; repeatable.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Most edits in a batch; the editor's own if left out.")
    ] = None,
    change_bound: Annotated[
        float | None,
        typer.Option(
            min=RANGES["change_bound"].least,
            max=RANGES["change_bound"].most,
            help="Most that a batch changes a weight by, as a part of its norm; 0 for no bound.",
        ),
    ] = None,
    approvals: Annotated[str, typer.Option(help=f"Who has to approve: {', '.join(NAMED)}.")] = "anyone",
    as_json: JsonOption = False,
) -> None:
    """Make a lineage: measures the base once (answers, perplexity, statistics of its activations).

    Example: corrigenda lineage create demo
    """
    _check_options(task, editor, inner_param or [])
    approval_policy = named(approvals)
    settings = current_settings()
    kept = stores(settings)
    _check_free(kept, name)
    measuring = "measuring the base model: its answers, its text, its activations; minutes the first time"
    stopped = "stopping: no lineage was made; the same command begins again"
    with SignOfLife(measuring, is_quiet=as_json), said_at_once(stopped, by=note):
        prepared = prepare_base(
            model,
            suite=suite,
            text=text,
            prior_text=prior_text or [DEFAULT_FACTS / "prior.txt"],
            inner_params=tuple(inner_param or ()),
            task=task,
            editor=editor,
        )
    made = make_lineage(
        kept,
        name,
        prepared,
        batch_size=batch_size,
        change_bound=change_bound,
        policy=GatePolicy(),
        approval_policy=approval_policy,
    )
    if settings.home.is_dir() and LocalStack(settings.home).status():
        start_edit_worker(LocalStack(settings.home), settings, prepared.base)
    if as_json:
        print_json(asdict(made))
    else:
        say(f"lineage {name}: base {prepared.base.digest[:12]}, task {prepared.base.task}")
        say(f"editor: {made.settings.editor_identity}, solver {made.settings.editor.solver}")
        say(f"edits {_listed(prepared.editor.inner_params)}")
        say(f"next: corrigenda submit -l {name} --prompt STEM --target ANSWER --wait")


def _listed(names: Sequence[str]) -> str:
    """Return names of weights: all of a few, else the first and the last and how many there are."""
    if len(names) <= MOST_LISTED:
        return ", ".join(names)
    return f"{counted(len(names), 'weight')}, {names[0]} to {names[-1]}; `lineage list --json` names all"


def _check_options(task: str | None, editor: str | None, inner_params: list[str]) -> None:
    """Say before the measuring what can be seen of the options alone."""
    if task is not None and task not in TASKS:
        raise InvalidInput(f"expected a task, one of {', '.join(TASKS)}; got {task!r:.80}")
    if editor is None or editor == NO_EDITOR:
        return
    if not Path(editor).is_dir():
        raise InvalidInput(f"expected the folder of a trained editor, or {NO_EDITOR}; got {editor!r:.300}")
    if inner_params:
        raise InvalidInput("expected either --inner-param or a trained editor, which names its own weights; got both")


def _check_free(kept: Stores, name: str) -> None:
    """Say before the measuring, not after it, that a name cannot be had."""
    check_name(name)
    if name in [found.settings.name for found in kept.lineages.lineages()]:
        raise InvalidInput(f"expected a free name for a lineage, got {name!r}, taken", lineage=name)


def lineage_list(as_json: JsonOption = False) -> None:
    """List the lineages.

    Example: corrigenda lineage list
    """
    found = stores(current_settings()).lineages.lineages()
    rows: list[Mapping[str, Any]] = (
        [asdict(lineage) | _in_other_words(lineage) for lineage in found]
        if as_json
        else [
            {
                "name": lineage.settings.name,
                "task": lineage.settings.base.task,
                "base": lineage.settings.base.digest[:12],
                "solver": lineage.settings.editor.solver,
                "editor": str(lineage.settings.editor_identity),
                "head": lineage.head_seq,
                "champion": lineage.champion_seq,
                "hold": lineage.hold,
            }
            for lineage in found
        ]
    )
    columns = {key: key for key in ("name", "task", "base", "solver", "editor", "head", "champion", "hold")}
    print_rows(rows, columns, as_json=as_json, empty="no lineage yet; make one with `corrigenda lineage create`")


def _in_other_words(lineage: Lineage) -> dict[str, Any]:
    """Return which editor it is, and the settings with the name that earlier versions gave to who approves."""
    settings = asdict(lineage.settings) | {"approval_rule": lineage.settings.approval_policy.rule.value}
    return {"editor": asdict(lineage.settings.editor_identity), "settings": settings}


def lineage_hold(
    name: Annotated[str, typer.Argument(help="Name of the lineage.")],
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Let no batch start until somebody resumes the lineage; what is being edited ends.

    Example: corrigenda lineage hold demo --reason "the disk is nearly full"
    """
    if not reason.strip():
        raise InvalidInput("expected --reason, which `status` and the pages show while the lineage is held; got none")
    kept = stores(reviewing_settings())
    kept.lineages.hold(name, reason=reason.strip(), actor=deciding_actor(kept))
    hold = kept.lineages.lineage(name).hold
    if as_json:
        print_json({"lineage": name, "hold": hold})
    else:
        say(f"lineage {name} is held: {hold}")


def lineage_resume(
    name: Annotated[str, typer.Argument(help="Name of the lineage.")],
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Lift a hold, so that batches are edited again.

    Example: corrigenda lineage resume demo
    """
    kept = stores(reviewing_settings())
    kept.lineages.resume(name, actor=deciding_actor(kept), reason=reason)
    if as_json:
        print_json({"lineage": name, "hold": kept.lineages.lineage(name).hold})
    else:
        say(f"lineage {name} is not held any more")


def lineage_rekey(
    name: Annotated[str, typer.Argument(help="Name of the lineage.")],
    strength: Annotated[float | None, typer.Option(min=1e-6, help="The prior's strength from then on.")] = None,
    keep_keys: Annotated[bool, typer.Option("--keep-keys", help="Change the strength alone.")] = False,
    undo: Annotated[
        int | None, typer.Option(min=1, help="Bring the ledger before this snapshot, solved anew, back.")
    ] = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Solve a lineage's ledger anew: read the keys of all active edits again, on the weights as they are now.

    It makes a candidate, which gates judge and somebody approves; rejecting it brings the ledger of before back, and so
    does --undo once it was approved.

    Example: corrigenda lineage rekey demo --reason "a thousand edits since the last time"
    """
    if keep_keys and strength is None:
        raise InvalidInput("expected --strength with --keep-keys, got nothing to change")
    if undo is not None and (keep_keys or strength is not None):
        raise InvalidInput("expected --undo alone, got --strength or --keep-keys too")
    kept = stores(reviewing_settings())
    if undo is not None:
        resolving = Resolving(undoes=kept.snapshots.snapshot(name, str(undo)).snapshot_id)
    else:
        resolving = Resolving(prior_strength=strength, rekeys=not keep_keys)
    removal_id, owed = kept.review.request_resolving(name, resolving, actor=deciding_actor(kept), reason=reason)
    if as_json:
        print_json({"lineage": name, "rekeying": removal_id, **owed.as_json()})
    elif replace(owed, place=0) == resolving:
        say(f"owed: a candidate of {name} with {owed.words()}; approve it to make it live")
    else:
        say(f"nothing new is owed: {name} owes a candidate with {owed.words()} already; ask again when it is made")


def lineage_upkeep(
    name: Annotated[str, typer.Argument(help="Name of the lineage.")],
    rekey_every: Annotated[
        int | None, typer.Option(min=0, help="Edits after which keys are read again; 0 for never.")
    ] = None,
    suite_kl_budget: Annotated[
        float | None, typer.Option(min=0, help="KL of the suite above which the prior gets stronger; 0 for none.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show or change what a lineage does by itself to stay good in a long stream; off unless asked for.

    Example: corrigenda lineage upkeep demo --rekey-every 1000 --suite-kl-budget 0.1
    """
    kept = stores(current_settings())
    found = kept.lineages.lineage(name)
    upkeep = Upkeep(
        rekey_every=found.upkeep.rekey_every if rekey_every is None else rekey_every,
        suite_kl_budget=found.upkeep.suite_kl_budget if suite_kl_budget is None else suite_kl_budget,
    )
    if upkeep != found.upkeep:
        kept.lineages.set_upkeep(name, upkeep, actor=cli_actor())
    if as_json:
        print_json({"lineage": name, "upkeep": asdict(upkeep), "prior_strength": found.prior_strength})
    else:
        usual = found.settings.editor.prior_strength
        beside = "" if found.prior_strength == usual else f" ({usual:.4g} when it was made)"
        say(f"{name}: {upkeep.words()}; prior strength {found.prior_strength:.4g}{beside}")


def lineage_approvals(
    name: Annotated[str, typer.Argument(help="Name of the lineage.")],
    rule: Annotated[str, typer.Argument(help=f"Who has to approve from now on: {', '.join(NAMED)}.")],
    approvers: Annotated[int | None, typer.Option(min=0, max=MAX_APPROVERS, help="How many people have to.")] = None,
    logged_in: Annotated[bool | None, typer.Option("--logged-in/--claimed", help="Only those who log in.")] = None,
    not_own: Annotated[bool | None, typer.Option("--not-own/--own", help="Nobody what they asked for.")] = None,
    needs_reason: Annotated[bool | None, typer.Option("--needs-reason/--no-reason", help="Each says why.")] = None,
    max_edits: Annotated[int | None, typer.Option(min=1, help="Most edits that go live without a person.")] = None,
    min_locality: Annotated[float | None, typer.Option(min=0, max=1, help="Least locality for that.")] = None,
    max_quality_loss: Annotated[float | None, typer.Option(min=0, help="Most loss of quality for that.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say who has to approve a lineage's snapshots: anyone, whoever logs in, two people, nobody.

    With four_eyes and two_approvers nobody approves what they have submitted or asked to revert, and edits need a
    submitter. With gates_only all that passes its gates goes live; with low_risk that of few edits does which moved
    little else. Options change the policy that is named.

    Example: corrigenda lineage approvals demo authenticated --needs-reason
    """
    demands = {
        "approvers": approvers,
        "requires_known_actor": logged_in,
        "not_own": not_own,
        "requires_reason": needs_reason,
    }
    limits = {"max_edits": max_edits, "min_locality": min_locality, "max_quality_loss": max_quality_loss}
    policy = changed_policy(named(rule), demands=demands, limits=limits)
    kept = stores(current_settings())
    kept.lineages.set_approval_policy(name, policy, actor=cli_actor())
    if as_json:
        print_json({"lineage": name, "approval_rule": policy.rule.value, "approval_policy": asdict(policy)})
    else:
        say(f"lineage {name} takes approvals by the rule {rule}: {policy.words()}")
