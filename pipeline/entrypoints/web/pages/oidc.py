"""Logging in with an OpenID Connect provider: the authorization code flow with PKCE, state and nonce.

The provider says who somebody is; what they may do is in the database, as for everybody else (`corrigenda person add`).

Source: OpenID Connect Core 1.0, 3.1; RFC 7636 (PKCE); RFC 9700 (best practice).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import urlencode, urlsplit

import httpx2
import structlog
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse
from itsdangerous import BadData, URLSafeTimedSerializer
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from pipeline.config import Settings
from pipeline.domain.errors import Misconfigured, Unavailable
from pipeline.entrypoints.web.pages.rendering import HEADERS, ROOT, page
from pipeline.entrypoints.web.pages.sessions import Denied, safe_path
from pipeline.entrypoints.web.pages.signed_in import sessions_of
from pipeline.entrypoints.web.parts import Parts

router = APIRouter()
log = structlog.get_logger(__name__)

COOKIE = "corrigenda_login"
PATH = f"{ROOT}/login/oidc"
CALLBACK = f"{PATH}/callback"
LIFE_SECONDS = 600
"""How long somebody may take at the provider."""
TIMEOUT_SECONDS = 10.0
MAX_BYTES = 1_000_000
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Signatures with a public key; the client's secret signs nothing."""
LEEWAY_SECONDS = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class _Begun:
    """A login that was begun in this browser."""

    state: str
    nonce: str
    verifier: str
    back: str


class OidcProvider:
    """The provider of the settings; its description is fetched when the first person logs in.

    Args:
        settings: name it, and how the pages are known there.

    Raises:
        Misconfigured: if it is not named by https (loopback aside), or the client has no name.
    """

    def __init__(self, settings: Settings) -> None:
        parts = urlsplit(settings.oidc_issuer)
        if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise Misconfigured(f"expected an OpenID Connect issuer with https, got {settings.oidc_issuer!r:.200}")
        settings.require("oidc_client_id")
        self._settings = settings
        self._issuer = settings.oidc_issuer
        self._described: Mapping[str, Any] | None = None

    def address(self, begun: _Begun, redirect_uri: str) -> str:
        """Return where the browser is sent to log in.

        Raises:
            Unavailable: if the provider does not answer as one.
        """
        challenge = base64.urlsafe_b64encode(hashlib.sha256(begun.verifier.encode()).digest()).rstrip(b"=").decode()
        query = {
            "response_type": "code",
            "client_id": self._settings.oidc_client_id,
            "redirect_uri": redirect_uri,
            "scope": "openid profile",
            "state": begun.state,
            "nonce": begun.nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        endpoint = str(self._description()["authorization_endpoint"])
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"

    def name(self, code: str, begun: _Begun, redirect_uri: str) -> str:
        """Return who logged in, for a code that the provider gave.

        Raises:
            Denied: if the code or the token is not good.
            Unavailable: if the provider does not answer as one.
        """
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "client_id": self._settings.oidc_client_id,
            "code_verifier": begun.verifier,
        }
        if secret := self._settings.oidc_client_secret.get_secret_value():
            form["client_secret"] = secret
        answer = self._asked(str(self._description()["token_endpoint"]), form)
        claims = self._claims(str(answer.get("id_token", "")), begun.nonce)
        name = claims.get(self._settings.oidc_name_claim)
        if not isinstance(name, str) or not name:
            raise _refused(f"the ID token has no claim {self._settings.oidc_name_claim}")
        return name

    def _claims(self, token: str, nonce: str) -> Mapping[str, Any]:
        keys = KeySet.import_key_set(self._asked(str(self._description()["jwks_uri"])))  # type: ignore[arg-type]
        expected = jwt.JWTClaimsRegistry(
            leeway=LEEWAY_SECONDS,
            iss={"essential": True, "value": self._issuer},
            aud={"essential": True, "value": self._settings.oidc_client_id},
            exp={"essential": True},
            sub={"essential": True},
        )
        try:
            claims = jwt.decode(token, keys, algorithms=ALGORITHMS).claims
            expected.validate(claims)
        except (JoseError, ValueError) as error:
            raise _refused(f"the ID token is not good: {type(error).__name__}") from error
        if not hmac.compare_digest(str(claims.get("nonce", "")).encode(), nonce.encode()):
            raise _refused("the ID token is of another login")
        return claims

    def _description(self) -> Mapping[str, Any]:
        if self._described is None:
            described = self._asked(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
            # Another issuer's description would let that one log people in.
            if described.get("issuer") != self._issuer:
                raise Unavailable(f"expected the description of {self._issuer}, got one of {described.get('issuer')!r}")
            self._described = described
        return self._described

    def _asked(self, url: str, form: Mapping[str, str] | None = None) -> Mapping[str, Any]:
        try:
            with httpx2.Client(timeout=TIMEOUT_SECONDS, follow_redirects=False) as client:
                answer = client.get(url) if form is None else client.post(url, data=dict(form))
            if form is not None and answer.status_code in (400, 401, 403):
                raise _refused("the provider does not take the code")
            answer.raise_for_status()
            found = answer.json() if len(answer.content) <= MAX_BYTES else None
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            raise Unavailable(f"the OpenID Connect provider at {url} does not answer as one: {error}") from error
        if not isinstance(found, dict):
            raise Unavailable(f"expected JSON of the OpenID Connect provider at {url}, got something else")
        return found


@router.get("/login/oidc")
def begin(request: Request, parts: Parts, back: Annotated[str, Query(max_length=2_000)] = "") -> Response:
    """Send the browser to the provider."""
    begun = _Begun(
        state=secrets.token_urlsafe(24),
        nonce=secrets.token_urlsafe(24),
        verifier=secrets.token_urlsafe(48),
        back=safe_path(back, under=ROOT),
    )
    target = _provider(request).address(begun, _redirect_uri(request, parts.settings))
    response = RedirectResponse(target, HTTPStatus.SEE_OTHER, headers=HEADERS)
    value = _signer(request).dumps([begun.state, begun.nonce, begun.verifier, begun.back])
    # The way back begins at another site, so this cookie may not be strict. It logs nobody in.
    secure = _redirect_uri(request, parts.settings).startswith("https:")
    response.set_cookie(COOKIE, value, max_age=LIFE_SECONDS, path=PATH, httponly=True, samesite="lax", secure=secure)
    return response


@router.get("/login/oidc/callback")
def end(
    request: Request,
    parts: Parts,
    code: Annotated[str, Query(max_length=4_000)] = "",
    state: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """Begin a session for the person whom the provider names."""
    begun = _begun(request)
    if begun is None or not code or not hmac.compare_digest(begun.state.encode(), state.encode()):
        raise _refused("this login was not begun in this browser, or took too long")
    name = _provider(request).name(code, begun, _redirect_uri(request, parts.settings))
    # Compared as it is: letters that fold into others would let one person in as another.
    person = parts.stores.people.named(name)
    if person is None:
        log.warning("login_refused", name=name[:100])
        detail = f"You are {name:.100} there, and nobody here: ask for `corrigenda person add`."
        raise Denied(HTTPStatus.FORBIDDEN, detail)
    # A strict cookie goes with no request that began at another site: this page goes on to the next one by itself.
    response = page(request, "continue.html", None, back=begun.back)
    sessions_of(request).begin(request, response, person)
    response.delete_cookie(COOKIE, path=PATH, httponly=True, samesite="lax")
    log.info("logged_in", person=person.name)
    return response


def _refused(why: str) -> Denied:
    return Denied(HTTPStatus.FORBIDDEN, f"You are not logged in: {why}. Please try again.")


def _provider(request: Request) -> OidcProvider:
    found: OidcProvider | None = request.app.state.oidc
    if found is None:
        raise Denied(HTTPStatus.NOT_FOUND, "No OpenID Connect provider is set; log in with a token.")
    return found


def _signer(request: Request) -> URLSafeTimedSerializer:
    return sessions_of(request).signer("corrigenda.oidc")


def _begun(request: Request) -> _Begun | None:
    try:
        stored = _signer(request).loads(request.cookies.get(COOKIE, ""), max_age=LIFE_SECONDS)
        state, nonce, verifier, back = map(str, stored)
    except (BadData, ValueError, TypeError):
        return None
    return _Begun(state=state, nonce=nonce, verifier=verifier, back=back)


def _redirect_uri(request: Request, settings: Settings) -> str:
    return (settings.web_public_url.rstrip("/") or str(request.base_url).split(ROOT, 1)[0].rstrip("/")) + CALLBACK
