"""Requests to the API, each tried again where that may help: while nothing answers, or the API says to come back."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from typing import Any, NoReturn

import httpx2
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_exponential_jitter

from pipeline.domain.errors import CorrigendaError, InvalidInput, Unavailable

AGAIN = frozenset({429, 502, 503, 504})
"""Answers after which the same request may succeed later."""
ANSWER_SECONDS = 30.0
"""How long one try waits for its answer."""
EXAMPLE = "http://127.0.0.1:8080"

_log = logging.getLogger(__name__)
_backing_off = wait_exponential_jitter(multiplier=0.2, max=5.0)


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
        super().__init__(detail_of(answer))
        said = answer.headers.get("retry-after", "")
        self.seconds = float(said) if said.isdecimal() else None


class Connection:
    """Sends requests in somebody's name.

    Arguments and errors are those of `CorrigendaClient`.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        patience: timedelta,
        tell: Callable[[str], None] | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._url = _address(url)
        self._patience, self._tell = patience, tell or _log.info
        headers = {"Authorization": f"Bearer {_stripped(token)}", "User-Agent": "corrigenda-client/1"}
        self._http = httpx2.Client(base_url=self._url, headers=headers, timeout=ANSWER_SECONDS, transport=transport)

    def ask(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        key: str | None = None,
        good: Collection[int] = (200, 202),
    ) -> httpx2.Response:
        """Send a request, again where that may help; return the answer.

        Args:
            method: of HTTP.
            path: below the address.
            body: sent as JSON.
            query: behind the path.
            key: idempotency key: it makes a second try a duplicate.
            good: statuses that are an answer.

        Raises:
            CorrigendaRefused: if the answer has another status.
            Unavailable: if there is none for as long as the patience lasts.
        """
        headers = {} if key is None else {"Idempotency-Key": key}
        content = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        if content is not None:
            headers["Content-Type"] = "application/json"
        send = Retrying(
            retry=retry_if_exception(_may_succeed_later),
            stop=stop_before_delay(self._patience),  # a Retry-After beyond it is not waited for
            wait=_pause,
            before_sleep=self._say_again,
            reraise=True,
        )
        try:
            answer = send(self._once, method, path, content=content, params=query or {}, headers=headers)
        except (_TryLater, httpx2.TransportError) as error:
            self._give_up(error)
        if answer.status_code not in good:
            raise CorrigendaRefused(detail_of(answer), status=answer.status_code)
        return answer

    def close(self) -> None:
        """Close what is open."""
        self._http.close()

    def _once(self, method: str, path: str, **request: Any) -> httpx2.Response:
        answer = self._http.request(method, path, **request)
        if answer.status_code in AGAIN:
            raise _TryLater(answer)
        return answer

    def _say_again(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        is_asked = isinstance(error, _TryLater) and error.seconds
        when = f" in {state.upcoming_sleep:.0f} s, as it asks" if is_asked else ""
        self._tell(f"{self._trouble(error)}; trying again{when}")

    def _give_up(self, error: Exception) -> NoReturn:
        later = (
            f"; it asks to come back in {error.seconds:.0f} s" if isinstance(error, _TryLater) and error.seconds else ""
        )
        raise Unavailable(f"{self._trouble(error)}{later}") from error

    def _trouble(self, error: BaseException | None) -> str:
        match error:
            case _TryLater():
                return f"expected the API at {self._url} to take the request, got: {error}"
            case httpx2.TimeoutException():
                return f"expected the API at {self._url} to answer within {ANSWER_SECONDS:.0f} s, got nothing"
            case _:
                return f"expected the API at {self._url} to answer, got: {str(error) or type(error).__name__}"


def object_in(answer: httpx2.Response) -> dict[str, Any]:
    """Return the JSON object of an answer; an empty one if it has none."""
    try:
        value = answer.json()
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def detail_of(answer: httpx2.Response) -> str:
    """Return the sentence of an answer that says no; one without any is from something else than the API."""
    said = object_in(answer).get("detail")
    another = f"expected an answer of the Corrigenda API, got HTTP {answer.status_code} {answer.reason_phrase}"
    return str(said or another)


def _address(url: str) -> str:
    try:
        found = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise InvalidInput(f"url: expected an address such as {EXAMPLE}, got {url!r:.120}: {error}") from error
    if found.scheme not in ("http", "https") or not found.host:
        raise InvalidInput(f"url: expected an address such as {EXAMPLE}, got {url!r:.120}")
    return url.rstrip("/")


def _stripped(token: str) -> str:
    """Return a token without the blanks around it; what it is stays out of the error."""
    found = token.strip()
    if not found.isascii() or not found.isprintable() or " " in found or not found:
        raise InvalidInput(
            "token: expected NAME:PASSWORD, as `corrigenda person add` wrote it, got none or another text"
        )
    return found


def _may_succeed_later(error: BaseException) -> bool:
    return isinstance(error, _TryLater | httpx2.TransportError)


def _pause(state: RetryCallState) -> float:
    """Return the seconds until the next try: what the API said, else longer each time."""
    error = state.outcome.exception() if state.outcome else None
    said = error.seconds if isinstance(error, _TryLater) else None
    return _backing_off(state) if said is None else said
