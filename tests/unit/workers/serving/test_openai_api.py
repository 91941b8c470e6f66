"""OpenAI's own client against a serving process: answers, streams, errors, health and metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from pipeline.telemetry import tracing
from tests.support.openai_server import Served, running
from tests.support.waiting import eventually
from workers.serving import openai_wire
from workers.serving.application import SNAPSHOT_HEADER

STEM = "the capital of Japan is"
TOKEN = "a-token-of-this-test"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with running(Served(tmp_path_factory.mktemp("served"))) as one:
        assert one.get("/readyz")[0] == 503
        one.entries["facts"] = one.approve("facts")
        yield one


def expected(served: Served, prompts: list[str], *, chat: bool = False, num: int = 6) -> list[str]:
    follower = served.lineages.get("facts")
    assert follower is not None
    assert follower.serving is not None
    answerable = follower.serving.answerable

    def generate() -> list[str]:
        answerable.base.use(answerable.edited)
        return answerable.base.model.generate(prompts, chat=chat, max_new_tokens=num)

    return served.thread.between_steps(generate)


def test_a_completion_is_what_the_snapshot_says(served: Served) -> None:
    raw = served.client().completions.with_raw_response.create(model="facts", prompt=STEM, max_tokens=6)
    said = raw.parse()
    assert said.choices[0].text == expected(served, [STEM])[0]
    assert said.usage is not None
    assert said.usage.prompt_tokens == 5
    assert said.usage.total_tokens == 5 + said.usage.completion_tokens
    assert said.choices[0].finish_reason in ("stop", "length")
    assert raw.headers[SNAPSHOT_HEADER] == served.entries["facts"].snapshot.snapshot_id
    assert str(said.system_fingerprint).startswith("facts-1-")


def test_a_chat_is_answered_in_the_models_template_whole_and_streamed(served: Served) -> None:
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": STEM}]}]
    client = served.client()
    whole = client.chat.completions.create(model="facts", messages=messages, max_completion_tokens=6)
    assert whole.choices[0].message.content == expected(served, [STEM], chat=True)[0]
    stream = client.chat.completions.create(
        model="facts", messages=messages, max_tokens=6, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    parts = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert "".join(parts) == whole.choices[0].message.content
    assert len(parts) > 1
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage == whole.usage


def test_several_prompts_and_choices_are_numbered_in_order(served: Served) -> None:
    prompts = [STEM, "a river located in", "who"]
    said = served.client().completions.create(model="facts", prompt=prompts, max_tokens=6, n=2)
    answers = expected(served, prompts)
    assert [choice.text for choice in said.choices] == [answer for answer in answers for _ in range(2)]
    assert [choice.index for choice in said.choices] == list(range(6))


def test_seed_temperature_and_stop_do_what_they_say(served: Served) -> None:
    client = served.client()

    def warm(seed: int) -> list[str]:
        said = client.completions.create(
            model="facts", prompt=STEM, max_tokens=12, temperature=1.5, top_p=0.9, seed=seed, n=3
        )
        return [choice.text for choice in said.choices]

    assert warm(1) == warm(1) != warm(2)
    plain = expected(served, [STEM], num=12)[0]
    stop = plain.split()[2]
    said = client.completions.create(model="facts", prompt=STEM, max_tokens=12, stop=[stop, "never"])
    assert said.choices[0].text == plain[: plain.index(stop)]
    assert said.choices[0].finish_reason == "stop"


def test_models_are_listed_and_one_without_champion_says_so(served: Served) -> None:
    client = served.client()
    assert [model.id for model in client.models.list()] == ["facts", "other"]
    assert client.models.retrieve("facts").owned_by == "corrigenda"
    with pytest.raises(openai.InternalServerError, match="got none yet") as refused:
        client.completions.create(model="other", prompt=STEM)
    assert refused.value.status_code == 503
    status, body = served.get("/readyz")
    assert status == 503
    assert "got none yet" in json.loads(body)["lineages"]["other"]["fault"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"temperature": 3}, "temperature: expected at most 2, got 3"),
        ({"prompt": ""}, "prompt.0: expected at least 1 character, got 0"),
        ({"logprobs": 5}, "logprobs: this server cannot do what this field asks for"),
        ({"prompt": "the " * 200}, "expected a prompt of at most 128 tokens, got 200"),
        ({"max_tokens": 0}, "max_tokens: expected at least 1, got 0"),
        ({"n": 99}, "n: expected at most 8, got 99"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_refused_in_openais_form(
    served: Served, wrong: dict[str, Any], said: str, stream: bool
) -> None:
    asked: dict[str, Any] = {"model": "facts", "prompt": STEM, "stream": stream} | wrong
    with pytest.raises(openai.BadRequestError, match=said.replace(".", r"\.")) as refused:
        served.client().completions.create(**asked)
    assert refused.value.type == "invalid_request_error"


def test_more_tokens_than_a_request_may_have_are_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_wire, "MAX_TOKENS_TOGETHER", 100)
    asked: dict[str, Any] = {"model": "facts", "max_tokens": 8}
    # "the" is one token, so each answer comes to nine at most.
    with pytest.raises(openai.BadRequestError, match="got 12 answers that may come to 108") as refused:
        served.client().completions.create(**asked, prompt=["the"] * 6, n=2)
    assert refused.value.param == "max_tokens"
    assert len(served.client().completions.create(**asked, prompt=["the"] * 11).choices) == 11


def test_fields_that_ask_for_nothing_are_read_over(served: Served) -> None:
    served.client().chat.completions.create(
        model="facts",
        messages=[{"role": "developer", "content": "Answer."}, {"role": "user", "content": STEM}],
        max_tokens=2,
        frequency_penalty=0,
        logprobs=False,
        user="me",
        metadata={"a": "b"},
        response_format={"type": "text"},
        tools=[],
    )


def test_an_unknown_model_path_and_body_are_openais_errors(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="expected a model that is served") as refused:
        served.client().completions.create(model="nobody", prompt=STEM)
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="expected a path of this server"):
        served.client().embeddings.create(model="facts", input=STEM)
    for body in (b"no JSON", b'{"prompt": "' + b"x" * 2**20 + b'"}'):
        with pytest.raises(HTTPError) as wrong:
            urlopen(Request(f"{served.url}/v1/completions", body))  # noqa: S310 - our own server
        assert wrong.value.code == 400
        assert json.loads(wrong.value.read())["error"]["type"] == "invalid_request_error"


def test_a_client_that_goes_away_stops_the_work(served: Served) -> None:
    stream = served.client().completions.create(model="facts", prompt=STEM, max_tokens=120, stream=True)
    next(iter(stream))
    stream.close()
    eventually(lambda: served.thread.num_active == 0 and served.thread.num_waiting == 0, "an idle thread")
    eventually(
        lambda: 'corrigenda_serving_requests_total{lineage="facts",status="499"}' in served.get("/metrics")[1],
        "a count",
    )
    assert served.get("/livez")[0] == 200


def test_metrics_tell_of_requests_tokens_and_followers(served: Served) -> None:
    served.client().completions.create(model="facts", prompt=STEM, max_tokens=2)
    said = served.get("/metrics")[1]
    for name in (
        'corrigenda_serving_requests_total{lineage="facts",status="200"}',
        'corrigenda_serving_tokens_total{kind="completion",lineage="facts"}',
        'corrigenda_follower_snapshot{lineage="facts"} 1.0',
        'corrigenda_follower_behind_seconds{lineage="facts"} 0.0',
        'corrigenda_follower_faulty{lineage="other"} 1.0',
        "corrigenda_serving_waiting 0.0",
    ):
        assert name in said


def test_a_token_is_asked_for_where_there_is_one_and_a_full_queue_says_when_to_come_again(tmp_path: Path) -> None:
    with running(Served(tmp_path, tokens=(TOKEN, "another-token-1234"), most_waiting=0)) as served:
        served.approve("facts")
        with pytest.raises(openai.AuthenticationError):
            served.client().models.list()
        with pytest.raises(openai.AuthenticationError):
            served.client("wrong").models.list()
        assert [model.id for model in served.client(TOKEN).models.list()] == ["facts", "other"]
        assert served.get("/livez")[0] == 200
        with pytest.raises(openai.InternalServerError) as full:
            served.client(TOKEN).completions.create(model="facts", prompt=STEM)
        assert full.value.status_code == 503
        assert full.value.response.headers["Retry-After"] == "1"
        assert full.value.code == "overloaded"


def test_an_answer_is_a_part_of_the_clients_trace_and_leads_to_that_of_the_edits(served: Served) -> None:
    follower = served.lineages.get("facts")
    assert follower is not None
    edits = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    client = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    served.registry.aliases["facts"] = replace(before := served.registry.aliases["facts"], traceparent=edits)
    eventually(lambda: follower.serving and follower.serving.version.traceparent == edits, "the version with its trace")
    exporter = InMemorySpanExporter()
    tracing.record_traces("serve", SimpleSpanProcessor(exporter))
    try:
        served.client().completions.create(
            model="facts", prompt=STEM, max_tokens=2, extra_headers={tracing.HEADER: client}
        )
        eventually(lambda: len(exporter.get_finished_spans()) == 1, "the span of an answer")
    finally:
        tracing.stop_traces()
        served.registry.aliases["facts"] = before
    [span] = exporter.get_finished_spans()
    said = dict(span.attributes or {})
    assert (span.name, said["corrigenda.lineage"], said["corrigenda.status"]) == ("answer", "facts", "200")
    assert said["corrigenda.snapshot"] == served.served_id("facts")
    assert said["corrigenda.tokens"] == 2
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}" in client
    assert [f"{link.context.trace_id:032x}" in edits for link in span.links] == [True]
