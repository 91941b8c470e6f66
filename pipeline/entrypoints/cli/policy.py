"""Commands that show and change what a snapshot of a lineage has to show: its gate policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from pipeline.bootstrap import stores
from pipeline.domain.bounds import BOUNDS
from pipeline.domain.errors import InvalidInput
from pipeline.domain.gates import GatePolicy
from pipeline.domain.lineages import Lineage
from pipeline.entrypoints.console import MAX_REASON, JsonOption, exits_clearly, print_json, print_rows, say
from pipeline.entrypoints.local_settings import cli_actor, current_settings

NameArgument = Annotated[str, typer.Argument(help="Name of the lineage.")]


def add_commands(lineage: typer.Typer) -> None:
    """Register the commands of this file under `lineage`."""
    policy = typer.Typer(help="What a snapshot has to show before anybody may approve it.", no_args_is_help=True)
    policy.command("show")(exits_clearly(policy_show))
    policy.command("set")(exits_clearly(policy_set))
    lineage.add_typer(policy, name="policy")


def policy_show(name: NameArgument, as_json: JsonOption = False) -> None:
    """Show every bound of a lineage's gate policy: its value, whether that is a minimum or a maximum, and of what.

    Example: corrigenda lineage policy show demo
    """
    found = stores(current_settings()).lineages.lineage(name)
    if as_json:
        print_json(_document(found))
        return
    rows = [row | {"default": row["default"] if row["is_changed"] else ""} for row in _rows(found.settings.policy)]
    columns = {"key": "key", "direction": "", "shown": "value", "default": "default", "unit": "unit", "meaning": "of"}
    print_rows(rows, columns, as_json=False, empty="no bounds", whole=("key",))
    say(f"{found.settings.approval_policy.words()} Change that with `corrigenda lineage approvals`.")


def policy_set(
    name: NameArgument,
    bounds: Annotated[list[str], typer.Argument(help="KEY=VALUE; repeatable. `off` where a bound may be.")],
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why, for the audit trail.")],
    as_json: JsonOption = False,
) -> None:
    """Change bounds of a lineage's gate policy: for the next batch, and for what is approved from now on.

    Example: corrigenda lineage policy set demo generalization_min=0.5 --reason "rephrases come with every request"
    """
    if not 0 < len(reason.strip()) <= MAX_REASON:
        raise InvalidInput(f"expected a reason of 1 to {MAX_REASON} characters, got {len(reason.strip())}")
    kept = stores(current_settings())
    before = kept.lineages.change_policy(name, _given(bounds), actor=cli_actor(), reason=reason)
    found = kept.lineages.lineage(name)
    if as_json:
        print_json(_document(found) | {"was": asdict(before)})
        return
    changes = [bound for bound in BOUNDS if bound.shown(before) != bound.shown(found.settings.policy)]
    for bound in changes:
        say(f"{bound.key}, a {bound.direction}: {bound.shown(before)} -> {bound.shown(found.settings.policy)}")
    say(f"the gate policy of {name} {'judges so from the next batch on' if changes else 'is so already'}")


def _given(bounds: Sequence[str]) -> dict[str, str]:
    parted = [text.partition("=") for text in bounds]
    for (key, equals, value), text in zip(parted, bounds, strict=True):
        if not (key and equals and value):
            raise InvalidInput(f"expected KEY=VALUE, as in generalization_min=0.5; got {text!r:.80}")
    given = {key.strip(): value for key, _, value in parted}
    if len(given) < len(bounds):
        raise InvalidInput("expected each key once, got one twice")
    return given


def _rows(policy: GatePolicy) -> list[dict[str, Any]]:
    default = GatePolicy()
    return [
        {
            "key": bound.key,
            "direction": bound.direction,
            "value": None if bound.is_off(policy) else getattr(policy, bound.key),
            "shown": bound.shown(policy),
            "default": bound.shown(default),
            "is_changed": bound.shown(policy) != bound.shown(default),
            "unit": bound.unit,
            "meaning": bound.meaning,
        }
        for bound in BOUNDS
    ]


def _document(found: Lineage) -> dict[str, Any]:
    policy = found.settings.policy
    return {
        "lineage": found.settings.name,
        "policy": asdict(policy),
        "digest": policy.digest,
        "approval_rule": found.settings.approval_policy.rule.value,
        "approval_policy": asdict(found.settings.approval_policy),
        "bounds": _rows(policy),
    }
