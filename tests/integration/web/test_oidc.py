"""Logging in to the pages with an OpenID Connect provider: a real one, which signs with a real key."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from pydantic import SecretStr
from starlette.testclient import TestClient

from pipeline.domain.errors import Misconfigured
from pipeline.domain.review.people import Role
from tests.support.oidc_provider import CLIENT, SECRET, OidcProviderOfTests
from tests.support.waiting import eventually
from tests.support.web_rig import WebRig, text_of

QUEUE = "/review/queue"


@contextmanager
def running(provider: OidcProviderOfTests) -> Iterator[str]:
    """The provider at an address of its own."""
    server = uvicorn.Server(uvicorn.Config(provider.app, port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started, "a provider that listens")
    provider.issuer = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield provider.issuer
    finally:
        server.should_exit = True
        thread.join()


def pages(url: str, folder: Path, issuer: str) -> WebRig:
    """The pages, where people log in with a provider."""
    return WebRig(url, folder, oidc_issuer=issuer, oidc_client_id=CLIENT, oidc_client_secret=SecretStr(SECRET))


def logged_in(web: WebRig, back: str = QUEUE) -> tuple[TestClient, Any]:
    """A browser that went to the provider and came back, and what it was shown."""
    browser = web.anonymous()
    begun = browser.get("/review/login/oidc", params={"back": back}, follow_redirects=False)
    return browser, browser.get(at_provider(begun.headers["location"]), follow_redirects=False)


def at_provider(address: str) -> str:
    """Where the provider sends the browser that comes to an address."""
    import httpx2

    location: str = httpx2.get(address, follow_redirects=False).headers["location"]
    return location


def test_somebody_whom_the_provider_names_is_logged_in_with_the_roles_of_here(
    postgres_url: str, tmp_path: Path, pools_close: None
) -> None:
    with running(OidcProviderOfTests("ada")) as issuer:
        web = pages(postgres_url, tmp_path, issuer)
        assert "organisation" in text_of(web.anonymous().get("/review/login"))
        _, nobody = logged_in(web)
        assert nobody.status_code == 403
        assert "nobody here" in text_of(nobody)
        web.token_of("ada", [Role.auditor])
        browser, told = logged_in(web)
        assert told.status_code == 200
        assert f'content="0; url={QUEUE}"' in told.text
        assert "ada auditor" in text_of(browser.get(QUEUE))
        _, elsewhere = logged_in(web, back="https://evil.example/")
        assert "evil" not in elsewhere.text


@pytest.mark.parametrize(
    "wrong",
    [
        {"iss": "https://other.example"},
        {"aud": "another-client"},
        {"exp": 1},
        {"nonce": "of another login"},
        {"preferred_username": 7},
        {"key": "another"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_token_that_is_wrong_in_one_way_logs_nobody_in(
    postgres_url: str, tmp_path: Path, pools_close: None, wrong: dict[str, Any]
) -> None:
    with running(OidcProviderOfTests("ada", **wrong)) as issuer:
        web = pages(postgres_url, tmp_path, issuer)
        web.token_of("ada", [Role.reviewer])
        browser, told = logged_in(web)
        assert told.status_code == 403
        assert browser.get(QUEUE, follow_redirects=False).status_code == 303


@pytest.mark.parametrize("name", ["\u212aarl", "Karl", "karl ", "karl\u0000", "KARL"])
def test_a_name_that_only_folds_into_somebodys_logs_nobody_in(
    postgres_url: str, tmp_path: Path, pools_close: None, name: str
) -> None:
    with running(OidcProviderOfTests(name)) as issuer:
        web = pages(postgres_url, tmp_path, issuer)
        web.token_of("karl", [Role.reviewer])
        browser, told = logged_in(web)
        assert told.status_code == 403
        assert browser.get(QUEUE, follow_redirects=False).status_code == 303


def test_a_code_of_another_browser_or_a_second_time_logs_nobody_in(
    postgres_url: str, tmp_path: Path, pools_close: None
) -> None:
    with running(OidcProviderOfTests("ada")) as issuer:
        web = pages(postgres_url, tmp_path, issuer)
        web.token_of("ada", [Role.reviewer])
        victim, attacker = web.anonymous(), web.anonymous()
        address = at_provider(attacker.get("/review/login/oidc", follow_redirects=False).headers["location"])
        victim.get("/review/login/oidc", follow_redirects=False)
        assert victim.get(address).status_code == 403
        assert attacker.get(address).status_code == 200
        assert attacker.get(address).status_code == 403


def test_a_provider_that_is_away_or_without_tls_is_told_so(
    postgres_url: str, tmp_path: Path, pools_close: None
) -> None:
    web = pages(postgres_url, tmp_path, "http://127.0.0.1:9")
    told = web.anonymous().get("/review/login/oidc", follow_redirects=False)
    assert told.status_code == 503
    assert "127.0.0.1:9" not in told.text
    with pytest.raises(Misconfigured, match="https"):
        pages(postgres_url, tmp_path, "http://provider.example")
