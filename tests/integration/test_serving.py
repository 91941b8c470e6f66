"""`corrigenda serve` as its user has it: a process that follows the champion in MLflow, checked by the database."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import openai
import peft
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from editors.models.families import CausalModel
from pipeline.adapters.logins import Login
from pipeline.domain.review.approvals import Decision
from pipeline.entrypoints import resident
from pipeline.entrypoints.cli.app import app
from tests.support.paths import ROOT
from tests.support.published import Publisher
from tests.support.served import STEM, chatting_base
from tests.support.store_rig import StoreRig
from tests.support.waiting import eventually, patience
from workers.serving.application import SNAPSHOT_HEADER, VERSION_HEADER

# PEFT asks transformers by a name that is about to go.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def publisher(postgres_url: str, mlflow_uri: str, lineage_name: str, tmp_path: Path) -> Iterator[Publisher]:
    rig = StoreRig(url=postgres_url, folder=tmp_path)
    yield Publisher(rig=rig, name=lineage_name, base=chatting_base(tmp_path / "base"), mlflow_uri=mlflow_uri)
    rig.close()


@pytest.fixture
def environment(postgres_url: str, mlflow_uri: str, tmp_path: Path) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("CORRIGENDA_")}
    return plain | {
        "PYTHONPATH": str(ROOT),
        "CORRIGENDA_HOME": str(tmp_path / "home"),
        "CORRIGENDA_DATABASE_URL": postgres_url,
        "CORRIGENDA_DATABASE_ROLE": Login.serving,
        "CORRIGENDA_MLFLOW_URI": mlflow_uri,
        "CORRIGENDA_MLFLOW_USERNAME": os.environ["MLFLOW_TRACKING_USERNAME"],
        "CORRIGENDA_MLFLOW_PASSWORD": os.environ["MLFLOW_TRACKING_PASSWORD"],
    }


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.entrypoints.cli", "serve", *words]


def answered(client: openai.OpenAI, name: str) -> tuple[str, str, str]:
    raw = client.completions.with_raw_response.create(model=name, prompt=STEM, max_tokens=6)
    said: Any = raw.parse()
    return said.choices[0].text, raw.headers[SNAPSHOT_HEADER], raw.headers[VERSION_HEADER]


def status_of(url: str) -> int:
    try:
        with urlopen(url) as answer:  # noqa: S310 - our own server
            return int(answer.status)
    except HTTPError as error:
        return error.code


@pytest.mark.slow
def test_what_people_approve_and_take_back_is_what_openais_client_is_answered_with(
    publisher: Publisher, environment: dict[str, str], tmp_path: Path
) -> None:
    first = publisher.candidate()
    publisher.decide(first, Decision.approved)
    (tmp_path / "tokens").write_text("a-token-of-sixteen-characters\n")
    (tmp_path / "tokens").chmod(0o600)
    argv = command("--port", "0", "--poll", "0.1", "--token-file", str(tmp_path / "tokens"))
    with subprocess.Popen(argv, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = re.fullmatch(r"serving (http://127\.0\.0\.1:\d+)/v1\n", server.stdout.readline())
            assert found is not None
            url = found[1]
            eventually(lambda: status_of(f"{url}/readyz") == 200, "the first snapshot to be served")
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="a-token-of-sixteen-characters", max_retries=0)
            assert answered(client, publisher.name) == (publisher.says(first), first.snapshot_id, "1")

            second = publisher.candidate()
            assert answered(client, publisher.name)[1] == first.snapshot_id, "nobody has approved the second"
            publisher.decide(second, Decision.approved)
            eventually(lambda: answered(client, publisher.name)[2] == "2", "the second to be served")
            assert answered(client, publisher.name)[0] == publisher.says(second) != publisher.says(first)

            publisher.decide(first, Decision.rolled_back)
            eventually(lambda: answered(client, publisher.name)[2] == "1", "the way back")
            assert answered(client, publisher.name)[0] == publisher.says(first)
        finally:
            os.kill(child_of(server.pid), signal.SIGTERM)
            server.wait(patience(60))
    assert server.returncode == 0
    kept = {path.stem for path in (tmp_path / "home" / "serving" / "files").iterdir()}
    assert kept == {snapshot.delta.digest for snapshot in publisher.made}


def child_of(pid: int) -> int:
    """The program that a command runs."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


@pytest.mark.slow
def test_a_snapshot_is_asked_and_exported_as_an_adapter_by_commands(
    publisher: Publisher,
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pools_close: None,
) -> None:
    monkeypatch.chdir(ROOT)
    own = {"CORRIGENDA_DATABASE_ROLE": Login.console, "CORRIGENDA_ARTIFACT_ROOT": str(tmp_path / "artifacts")}
    for name, value in (environment | own).items():
        monkeypatch.setenv(name, value)
    snapshots = [publisher.candidate(is_registered=False) for _ in range(2)]

    def corrigenda(*words: str) -> Any:
        done = CliRunner().invoke(app, [*words, "-l", publisher.name, "--json"])
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    try:
        for seq, snapshot in enumerate(snapshots, start=1):
            said = corrigenda("ask", STEM, "--snapshot", str(seq), "--max-new-tokens", "6")
            assert said == [{"prompt": STEM, "text": publisher.says(snapshot)}]
    finally:
        assert resident.stop(tmp_path / "home")
    written = corrigenda("export", "--peft", str(tmp_path / "adapter"), "--snapshot", "2")
    assert written["rank"] == 4, "two deltas of rank 2"
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert snapshots[1].digest in card
    plain = AutoModelForCausalLM.from_pretrained(publisher.base.ref)
    adapted = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).merge_and_unload()
    model = CausalModel(adapted, AutoTokenizer.from_pretrained(publisher.base.ref))
    assert model.generate([STEM], max_new_tokens=6)[0] == publisher.says(snapshots[1])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--host", "0.0.0.0"), "expected a token file for an address that others reach"),
        (("--token-file", "/nope"), "expected a file of tokens at /nope"),
        (("--trust-tags",), "expected --lineage with --trust-tags"),
    ],
)
def test_a_server_that_cannot_work_says_why(
    environment: dict[str, str],
    words: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from workers.serving.__main__ import MISCONFIGURED, main

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(words) == MISCONFIGURED
    assert said in capsys.readouterr().err.splitlines()[-1]
