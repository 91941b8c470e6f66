"""Who is logged in to the pages: a signed cookie that names a person, and forms that only our pages can have made.

The cookie says who logged in and when; roles are read from the database at every request, so whoever is removed, or
gets another token, is out at once. Nothing is stored: a process with another key, or started anew without one, asks
everybody to log in again.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from urllib.parse import urlsplit

from fastapi import Request, Response
from itsdangerous import BadData, URLSafeTimedSerializer

from pipeline.domain.review.people import Person
from pipeline.entrypoints.web.parts import WebParts

COOKIE = "corrigenda_session"
LIFE = timedelta(hours=8)
"""How long somebody stays logged in; as long as a day's work."""
FROM_HERE = frozenset({"same-origin", "none"})
"""What a browser says of requests that no other site has caused (Sec-Fetch-Site)."""


class LoginNeeded(Exception):
    """Nobody is logged in.

    Args:
        back: the path to return to afterwards.
        has_lost: whether a form was sent, which is not carried out.
    """

    def __init__(self, back: str, *, has_lost: bool = False) -> None:
        super().__init__(back)
        self.back = back
        self.has_lost = has_lost


class Denied(Exception):
    """A request that is refused.

    Args:
        status: of HTTP.
        detail: one sentence for the person.
    """

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """One login of a person in one browser."""

    person: Person
    """Who it is, with the roles of now."""
    csrf: str
    """What forms of this session carry."""


class Sessions:
    """Makes and reads sessions.

    Args:
        key: what cookies are signed with; empty makes one that ends with the process.
        path: under which the pages are, which the cookie is for.
        is_secure: whether browsers always come by TLS, though a proxy may take it off.
    """

    def __init__(self, key: str, path: str, *, is_secure: bool = False) -> None:
        self._key = key or secrets.token_urlsafe(32)
        self._serializer = self.signer("corrigenda.session")
        self._path = path
        self._is_secure = is_secure

    def signer(self, purpose: str) -> URLSafeTimedSerializer:
        """Return what signs values for one purpose with the key; no other purpose takes them."""
        return URLSafeTimedSerializer(self._key, salt=purpose)

    def begin(self, request: Request, response: Response, person: Person) -> None:
        """Log a person in with a response."""
        value = self._serializer.dumps([person.name, person.token_mark, secrets.token_urlsafe(18)])
        response.set_cookie(
            COOKIE,
            value,
            max_age=int(LIFE.total_seconds()),
            path=self._path,
            httponly=True,
            samesite="strict",
            secure=self._is_secure or request.url.scheme == "https",
        )

    def end(self, response: Response) -> None:
        """Log whoever it is out with a response."""
        response.delete_cookie(COOKIE, path=self._path, httponly=True, samesite="strict")

    def of(self, request: Request, parts: WebParts) -> Session | None:
        """Return the session of a request; None if there is none, it is too old, or its person has no role left.

        A session also ends when its person gets another token, whichever way they logged in.
        """
        try:
            stored = self._serializer.loads(request.cookies.get(COOKIE, ""), max_age=int(LIFE.total_seconds()))
            name, mark, nonce = map(str, stored)
        except (BadData, ValueError, TypeError):
            return None
        person = parts.stores.people.named(name)
        return Session(person=person, csrf=nonce) if person and person.token_mark == mark else None


def check_form(request: Request, session: Session, token: str) -> None:
    """Refuse a form that another site, or another session, has made.

    Raises:
        Denied: if so.
    """
    check_origin(request)
    if not hmac.compare_digest(token.encode(), session.csrf.encode()):
        raise Denied(HTTPStatus.FORBIDDEN, "This form is of an earlier login. Go back, reload the page and try again.")


def check_origin(request: Request) -> None:
    """Refuse a request that another site has caused, as far as the browser says so.

    Raises:
        Denied: if so.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if (site is not None and site not in FROM_HERE) or (
        origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    ):
        raise Denied(HTTPStatus.FORBIDDEN, "This request came from another site and was not carried out.")


def safe_path(path: str, *, under: str) -> str:
    """Return a path to go back to; the start page for whatever is not one of our pages."""
    is_ours = path.startswith(f"{under}/") and not any(ord(char) < 32 or char == "\\" for char in path)
    return path if is_ours and "//" not in path.split("?", 1)[0] else f"{under}/queue"
