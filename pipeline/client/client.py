"""The client: one method a route, with retries that never make a correction twice."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any, Self, TypeVar
from urllib.parse import quote
from uuid import uuid4

import httpx2
import stamina
from pydantic import BaseModel, ValidationError

from pipeline.domain.contract.answers import FINAL, CorrectionStatus, Receipt, Received, Refusal
from pipeline.domain.contract.corrections import CorrectionV1
from pipeline.domain.errors import CorrigendaError, InvalidInput, Unavailable

AGAIN = frozenset({429, 502, 503, 504})
"""Answers after which the same request may succeed later."""
FIRST_POLL, LONGEST_POLL = timedelta(seconds=0.5), timedelta(seconds=10)
Chat = Sequence[Mapping[str, Any]]
"""Turns as OpenAI's API has them: role and content."""
Answer = TypeVar("Answer", bound=BaseModel)


class CorrigendaRefused(CorrigendaError):
    """An answer that says no: the message says what to change.

    Args:
        detail: one sentence of the API.
        status: of HTTP.
    """

    def __init__(self, detail: str, *, status: int) -> None:
        super().__init__(detail)
        self.status = status


class _TryLater(Exception):
    """An answer after which the same request may succeed later."""

    def __init__(self, answer: httpx2.Response) -> None:
        super().__init__(_detail(answer))
        said = answer.headers.get("retry-after", "")
        self.wait = timedelta(seconds=int(said)) if said.isdigit() else None


class CorrigendaClient:
    """Sends corrections over HTTP and follows them.

    Args:
        url: of the API, such as `http://127.0.0.1:8080`.
        token: `NAME:PASSWORD`, as `corrigenda person add` wrote it.
        patience: how long to try again while the API is away or asks to come back later.
        transport: what sends requests, for tests.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        patience: timedelta = timedelta(minutes=1),
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._patience = patience
        headers = {"Authorization": f"Bearer {token.strip()}", "User-Agent": "corrigenda-client/1"}
        self._http = httpx2.Client(base_url=url, headers=headers, timeout=30.0, transport=transport)

    def submit(self, correction: CorrectionV1) -> Receipt:
        """Send one correction; it is accepted once, however often this has to try.

        Raises:
            CorrigendaRefused: if it cannot be accepted as it is, or the token is not good for it.
            Unavailable: if the API stays away.
        """
        answer = self._ask("POST", "/v1/corrections", body=_document(correction), key=str(uuid4()))
        return _read(Receipt, answer)

    def submit_all(self, corrections: Sequence[CorrectionV1 | Mapping[str, Any]]) -> list[Receipt | Refusal]:
        """Send up to a thousand corrections in one call; return what became of each, in their order.

        Raises:
            CorrigendaRefused: if the call as a whole is refused.
            Unavailable: if the API stays away.
        """
        body = [_document(one) for one in corrections]
        answer = self._ask("POST", "/v1/corrections", body=body, key=str(uuid4()), good=(202, 207, 422))
        if answer.status_code == 422 and "results" not in _json(answer):
            raise CorrigendaRefused(_detail(answer), status=answer.status_code)
        return _read(Received, answer).results

    def feedback(self, messages: Chat, *, correction: str, **fields: Any) -> Receipt:
        """Send a chat that went wrong, with the answer that would have been right.

        Args:
            messages: the turns, up to the wrong answer or with it.
            correction: the right answer.
            **fields: more of a correction: `target_new`, `subject`, `lineage` or `model`, …

        Raises:
            CorrigendaRefused, Unavailable: as `submit`.
        """
        body = {"messages": list(messages), "correction": correction, **fields}
        return _read(Receipt, self._ask("POST", "/v1/feedback", body=body, key=str(uuid4())))

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
        return _read(CorrectionStatus, self._ask("GET", f"/v1/corrections/{quote(ref, safe='')}", query=query))

    def wait(
        self, ref: str, *, until: Collection[str] = FINAL, timeout: timedelta = timedelta(hours=1)
    ) -> CorrectionStatus:
        """Ask again and again until a correction is in one of some states; return where it stands then.

        Args:
            ref: as for `status`.
            until: states to wait for; those that do not change by themselves, and live, if left out.
            timeout: how long at most; then the state is returned as it is.
        """
        ends, pause = time.monotonic() + timeout.total_seconds(), FIRST_POLL.total_seconds()
        while (found := self.status(ref)).state not in until and time.monotonic() + pause < ends:
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST_POLL.total_seconds())
        return found

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _ask(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        key: str | None = None,
        good: Collection[int] = (200, 202),
    ) -> httpx2.Response:
        """Send a request, again where that may help: the same key makes a second try a duplicate."""
        headers = {} if key is None else {"Idempotency-Key": key}
        content = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        if content is not None:
            headers["Content-Type"] = "application/json"
        try:
            for attempt in stamina.retry_context(on=_later, attempts=None, timeout=self._patience):
                with attempt:
                    answer = self._http.request(method, path, content=content, params=query or {}, headers=headers)
                    if answer.status_code in AGAIN:
                        raise _TryLater(answer)
        except _TryLater as error:
            raise Unavailable(f"expected the API to take the request, got: {error}") from error
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            where = self._http.base_url
            raise Unavailable(f"expected the API at {where} to answer, got {type(error).__name__}") from error
        if answer.status_code not in good:
            raise CorrigendaRefused(_detail(answer), status=answer.status_code)
        return answer


def _later(error: Exception) -> bool | timedelta:
    """Return whether to try again, and when, if the API said so."""
    if isinstance(error, _TryLater):
        return error.wait or True
    return isinstance(error, httpx2.TransportError)


def _document(correction: CorrectionV1 | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(correction, CorrectionV1):
        return correction.model_dump(mode="json", exclude_unset=True)
    return dict(correction)


def _json(answer: httpx2.Response) -> dict[str, Any]:
    try:
        value = answer.json()
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _detail(answer: httpx2.Response) -> str:
    return str(_json(answer).get("detail") or f"HTTP {answer.status_code} {answer.reason_phrase}")


def _read(kind: type[Answer], answer: httpx2.Response) -> Answer:
    try:
        return kind.model_validate(_json(answer))
    except ValidationError as error:
        raise InvalidInput(f"expected an answer of the Corrigenda API, got another: {answer.text[:200]!r}") from error
