"""What commands pass on to the processes that they start."""

from __future__ import annotations

from pydantic import SecretStr

from pipeline.config import Settings
from pipeline.entrypoints.local_settings import serving_environment

COLLECTOR = "http://collector:4318/v1/traces"


def test_a_serving_process_is_told_where_traces_go_and_no_secret_of_another() -> None:
    given = serving_environment(Settings(traces_endpoint=COLLECTOR, web_session_key=SecretStr("of the pages")))
    assert given["CORRIGENDA_TRACES_ENDPOINT"] == COLLECTOR
    assert "of the pages" not in given.values()
