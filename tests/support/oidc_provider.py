"""A small OpenID Connect provider that signs with a real key, and can be told to be wrong in one way."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import FastAPI, Form, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey

CLIENT, SECRET = "corrigenda-pages", "of-this-test"


class OidcProviderOfTests:
    """Logs everybody in as `name` without asking.

    Args:
        name: who everybody is.
        wrong: claims of the token that are replaced; `key` signs with another key.
    """

    def __init__(self, name: str, **wrong: Any) -> None:
        self.name = name
        self.wrong = wrong
        self.issuer = ""
        self._key = RSAKey.generate_key(2048, {"kid": "one"})
        self._other = RSAKey.generate_key(2048, {"kid": "one"})
        self._codes: dict[str, dict[str, str]] = {}
        self.app = FastAPI()
        self.app.get("/.well-known/openid-configuration")(self._describe)
        self.app.get("/authorize")(self._authorize)
        self.app.post("/token")(self._token)
        self.app.get("/keys")(self._keys)

    def _describe(self) -> dict[str, str]:
        named = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
        return {"issuer": self.issuer} | {name: f"{self.issuer}/{path}" for name, path in named.items()}

    def _authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        code = secrets.token_urlsafe(8)
        self._codes[code] = asked
        return RedirectResponse(f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}")

    def _token(
        self,
        code: Annotated[str, Form()],
        code_verifier: Annotated[str, Form()],
        client_id: Annotated[str, Form()],
        client_secret: Annotated[str, Form()],
        redirect_uri: Annotated[str, Form()],
    ) -> Response:
        asked = self._codes.pop(code, {})
        challenge = base64.urlsafe_b64encode(hashlib.sha256(code_verifier.encode()).digest()).rstrip(b"=").decode()
        got = (client_id, client_secret, redirect_uri, challenge)
        if got != (CLIENT, SECRET, asked.get("redirect_uri"), asked.get("code_challenge")):
            return JSONResponse({"error": "invalid_grant"}, 400)
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT, "sub": "1", "iat": now, "exp": now + 300, "nonce": asked["nonce"]}
        claims |= {"preferred_username": self.name}
        claims |= {name: value for name, value in self.wrong.items() if name in claims}
        signed = jwt.encode({"alg": "RS256", "kid": "one"}, claims, self._other if "key" in self.wrong else self._key)
        return JSONResponse({"access_token": "none", "token_type": "Bearer", "id_token": signed})

    def _keys(self) -> Any:
        return KeySet([self._key]).as_dict(private=False)
