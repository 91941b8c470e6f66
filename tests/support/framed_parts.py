"""A tiny model that is asked in several frames: edits with every kind of frame, and settings for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from editors.methods.base import EditJob, EditResult
from editors.methods.recursive import RecursiveEditor
from pipeline.domain.edits import Edit
from pipeline.domain.rank_api import EditorSettings
from tests.support.factories import make_edit
from tests.support.ledger_parts import SETTINGS, Rig, make_rig

CHAT_TEMPLATE = "{% for turn in messages %}who {{ turn.content }} . {% endfor %}"
"""A chat in words that the tiny models know."""
GUARDS = ("Spain", "Germany")
"""Other subjects, for any of the edits below."""


def framed_edits() -> list[Edit]:
    """Edits with aliases, rephrases and a question; one that came as a plain prompt, and one without a subject."""
    return [
        make_edit(
            "framed-japan",
            prompt="the capital of Japan is",
            subject="Japan",
            target_new="Milan",
            question="what city is the capital of Japan",
            rephrases=("Japan has capital", "capital city in Japan is", "city of president in Japan is"),
            aliases=("Tokyo",),
        ),
        make_edit("framed-france", prompt="the river in France is", subject="France", target_new="queen Madrid"),
        make_edit("framed-nobody", prompt="the language spoken by king is", target_new="Bonn"),
    ]


def framed_rig(folder: Path, kind: str = "llama") -> Rig:
    """A rig whose tokenizer has a chat template."""
    rig = make_rig(folder, kind)
    rig.model.tokenizer.chat_template = CHAT_TEMPLATE
    return rig


def framed_settings(rig: Rig, *, num_subject: int = 1, **changes: object) -> EditorSettings:
    """The first weights are edited at subject tokens and the others at answer tokens, in frames and with guards."""
    names = rig.model.inner_param_names
    framed = replace(SETTINGS, frames_per_pass=2, num_guards=2, rephrase_rows=1)
    return replace(framed, inner_params=names, subject_params=names[:num_subject], **changes)  # type: ignore[arg-type]


def framed_job(
    rig: Rig, added: list[Edit], *, guards: tuple[str, ...] = GUARDS, removed: tuple[str, ...] = ()
) -> EditJob:
    """A job whose edits all have the same guards, but those without a subject."""
    return EditJob(
        model=rig.model,
        weights=rig.weights,
        ledger=rig.ledger,
        added=added,
        removed_ids=removed,
        guards={edit.edit_id: guards for edit in added if edit.request.subject},
    )


def keep(rig: Rig, result: EditResult) -> EditResult:
    """Take a result into weights and ledger."""
    rig.weights.apply(result.delta)
    rig.ledger.commit(result.rows, result.removed_ids)
    return result


def edited(rig: Rig, settings: EditorSettings, job: EditJob) -> EditResult:
    """Edit and keep."""
    return keep(rig, RecursiveEditor(settings).edit(job))
