"""Requests are counted by route, never by a path or a method that somebody made up."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY

from pipeline.telemetry.http_metrics import NO_ROUTE, OTHER_METHOD, HttpMetrics


def made() -> FastAPI:
    app, router = FastAPI(), APIRouter(prefix="/v1")

    @router.get("/things/{thing_id}")
    def thing(thing_id: str) -> str:
        if thing_id == "bad":
            raise RuntimeError("broken")
        return thing_id

    app.include_router(router)
    app.add_middleware(HttpMetrics)
    return app


def count(route: str, status: str, method: str = "GET") -> float:
    labels = {"route": route, "status": status, "method": method}
    return REGISTRY.get_sample_value("corrigenda_http_requests_total", labels) or 0


def test_a_request_is_counted_under_its_route_with_its_status() -> None:
    before = count("/v1/things/{thing_id}", "200"), count(NO_ROUTE, "404"), count("/v1/things/{thing_id}", "500")
    client = TestClient(made(), raise_server_exceptions=False)
    for path in ("/v1/things/1", "/v1/things/2", "/made/up", "/v1/things/bad"):
        client.get(path)
    after = count("/v1/things/{thing_id}", "200"), count(NO_ROUTE, "404"), count("/v1/things/{thing_id}", "500")
    assert [now - then for now, then in zip(after, before, strict=True)] == [2, 1, 1]


def test_a_method_that_nobody_knows_is_no_label() -> None:
    before = count(NO_ROUTE, "404", OTHER_METHOD)
    TestClient(made()).request("BREW", "/coffee")
    assert count(NO_ROUTE, "404", OTHER_METHOD) == before + 1
    assert count(NO_ROUTE, "404", "BREW") == 0
