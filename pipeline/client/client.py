"""The client: one method a route; the same correction is made once, however often a request has to be tried."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote
from uuid import uuid4

from pydantic import BaseModel, ValidationError

from pipeline.client.connection import Connection, CorrigendaRefused, detail_of, object_in
from pipeline.client.corrections import Correction
from pipeline.domain.contract.answers import FINAL, MEANINGS, CorrectionStatus, Receipt, Received, Refusal
from pipeline.domain.errors import InvalidInput

if TYPE_CHECKING:
    import httpx2

FIRST_POLL, LONGEST_POLL = timedelta(seconds=0.5), timedelta(seconds=10)
Chat = Sequence[Mapping[str, Any]]
"""Turns as OpenAI's API has them: role and content."""
Answer = TypeVar("Answer", bound=BaseModel)


class CorrigendaClient:
    """Sends corrections over HTTP and follows them.

    Args:
        url: of the API, such as `http://127.0.0.1:8080`.
        token: `NAME:PASSWORD`, as `corrigenda person add` wrote it.
        patience: how long to try again at most, while the API is away or asks to come back later.
        tell: what is called with a sentence before each further try; left out, the log `pipeline.client` has it.
        transport: what sends requests, for tests.

    Raises:
        InvalidInput: if the address or the token cannot be one.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        patience: timedelta = timedelta(minutes=1),
        tell: Callable[[str], None] | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._api = Connection(url, token, patience=patience, tell=tell, transport=transport)

    def submit(self, correction: Correction | Mapping[str, Any]) -> Receipt:
        """Send one correction; it is accepted once, however often this has to try.

        Raises:
            CorrigendaRefused: if it cannot be accepted as it is, or the token is not good for it.
            Unavailable: if the API stays away.
        """
        return _read(Receipt, self._api.ask("POST", "/v1/corrections", body=_document(correction), key=str(uuid4())))

    def submit_all(self, corrections: Sequence[Correction | Mapping[str, Any]]) -> list[Receipt | Refusal]:
        """Send up to a thousand corrections in one call; return what became of each, in their order.

        Raises:
            CorrigendaRefused: if the call as a whole is refused.
            Unavailable: if the API stays away.
        """
        body = [_document(one) for one in corrections]
        answer = self._api.ask("POST", "/v1/corrections", body=body, key=str(uuid4()), good=(202, 207, 422))
        if answer.status_code == 422 and "results" not in object_in(answer):
            raise CorrigendaRefused(detail_of(answer), status=answer.status_code)
        return _read(Received, answer).results

    def feedback(self, messages: Chat, *, correction: str, **fields: Any) -> Receipt:
        """Send a chat that went wrong, with the answer that would have been right.

        Args:
            messages: the turns, up to the wrong answer or with it.
            correction: the right answer.
            **fields: more of a correction, such as `target_new` and `subject`; the lineage as `lineage` or `model`.

        Raises:
            CorrigendaRefused, Unavailable: as `submit`.
        """
        body = {"messages": list(messages), "correction": correction, **fields}
        return _read(Receipt, self._api.ask("POST", "/v1/feedback", body=body, key=str(uuid4())))

    def status(self, ref: str, *, lineage: str | None = None) -> CorrectionStatus:
        """Say where a correction stands and why.

        Args:
            ref: the id of a receipt or of an edit, or your own request id.
            lineage: where several lineages have your id.

        Raises:
            CorrigendaRefused: with status 404 if there is none of yours.
            Unavailable: if the API stays away.
        """
        query = {} if lineage is None else {"lineage": lineage}
        return _read(CorrectionStatus, self._api.ask("GET", f"/v1/corrections/{quote(ref, safe='')}", query=query))

    def wait(
        self,
        ref: str,
        *,
        until: Collection[str] = FINAL,
        timeout: timedelta = timedelta(hours=1),
        lineage: str | None = None,
        tell: Callable[[CorrectionStatus], None] | None = None,
    ) -> CorrectionStatus:
        """Ask again and again until a correction is in one of some states; return where it stands then.

        Args:
            ref: as for `status`.
            until: states to wait for, such as `["candidate", "rejected"]`; left out, those that do not change by
                themselves, and live.
            timeout: how long at most; then the state is returned as it is.
            lineage: as for `status`.
            tell: what is called with each answer before the last.

        Raises:
            InvalidInput: if there is no such state.
            CorrigendaRefused, Unavailable: as `status`.
        """
        states = {until} if isinstance(until, str) else set(until)
        if unknown := sorted(states - MEANINGS.keys()):
            raise InvalidInput(
                f"until: expected states among {', '.join(map(repr, MEANINGS))}; got {', '.join(map(repr, unknown))}"
            )
        ends, pause = time.monotonic() + timeout.total_seconds(), FIRST_POLL.total_seconds()
        while (found := self.status(ref, lineage=lineage)).state not in states and time.monotonic() + pause < ends:
            if tell is not None:
                tell(found)
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST_POLL.total_seconds())
        return found

    def close(self) -> None:
        """Close the connections."""
        self._api.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def _document(correction: Correction | Mapping[str, Any]) -> dict[str, Any]:
    return correction.document() if isinstance(correction, Correction) else dict(correction)


def _read(kind: type[Answer], answer: httpx2.Response) -> Answer:
    try:
        return kind.model_validate(object_in(answer))
    except ValidationError as error:
        raise InvalidInput(f"expected an answer of the Corrigenda API, got another: {answer.text[:200]!r}") from error
