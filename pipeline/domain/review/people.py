"""People and programs that use the HTTP API and the pages, and what each of them may do there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

NAME = re.compile(r"[a-z][a-z0-9_.-]{0,40}")
"""What a person may be called: also a database login may be."""


class Role(StrEnum):
    """What somebody may do; one person may have several roles."""

    requester = "requester"
    """Sends corrections, and sees what became of their own."""
    reviewer = "reviewer"
    """Approves, rejects and reverts; also has a database login, so that commands decide in their name."""
    auditor = "auditor"
    """Reads everything and changes nothing."""
    operator = "operator"
    """Holds and resumes lineages, tries dead edits again, sends again what was given up; sees every webhook."""


SEES_EVERYTHING = frozenset({Role.reviewer, Role.auditor, Role.operator})
"""Whoever has one of these reads corrections of everybody, others read their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """Somebody who showed who they are."""

    name: str
    """The name under which they submit and decide."""
    roles: frozenset[Role]
    """What they may do."""
    token_mark: str = field(default="", compare=False, repr=False)
    """Another one with every new token, so that sessions which an earlier token has opened end."""

    def has_any(self, roles: Iterable[Role]) -> bool:
        """Return whether the person has at least one of some roles."""
        return not self.roles.isdisjoint(roles)

    @property
    def sees_everything(self) -> bool:
        """Whether they may read corrections of other people."""
        return self.has_any(SEES_EVERYTHING)
