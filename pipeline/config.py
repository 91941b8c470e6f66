"""Every setting, from the environment (`CORRIGENDA_…`), `.env` in the working folder, and files in /run/secrets."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline.domain.contract.reasons import expected_of
from pipeline.domain.edits import MAX_AHEAD
from pipeline.domain.errors import Misconfigured

SECRETS_FOLDER = Path("/run/secrets")


def _seconds(value: Any) -> Any:
    """Read a bare number as seconds; everything else is left to Pydantic (`PT30S`, `00:00:30`)."""
    try:
        return timedelta(seconds=float(value)) if isinstance(value, str) else value
    except (ValueError, OverflowError):
        return value


Duration = Annotated[timedelta, BeforeValidator(_seconds)]


class Settings(BaseSettings):
    """Where the services are and how the processes behave."""

    model_config = SettingsConfigDict(
        env_prefix="CORRIGENDA_",
        env_file=".env",
        extra="ignore",
        frozen=True,
    )

    home: Path = Field(Path(".corrigenda"), description="Folder of the embedded stack and of local state.")
    database_url: SecretStr = Field(SecretStr(""), description="SQLAlchemy URL, postgresql+psycopg://…")
    database_role: str = Field("", description="Role to take on after connecting; empty keeps the login's own.")
    reviewer_token: SecretStr = Field(SecretStr(""), description="Token of the reviewer who decides.")
    reviewer_token_file: Path | None = Field(None, description="File with that token, which nobody else may read.")
    redis_url: SecretStr = Field(SecretStr(""), description="Celery broker.")
    kafka_bootstrap: str = Field("", description="host:port[,host:port…]")
    kafka_incarnation: str = Field("", description="Cluster id to use where the broker gives no stable one.")
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="How clients of the broker prove who they are, and whether they encrypt."
    )
    kafka_sasl_mechanism: str | None = Field(None, description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512, for SASL_…")
    kafka_sasl_username: str | None = Field(None, description="User of the broker, for SASL_…")
    kafka_sasl_password: SecretStr | None = Field(None, description="Password of that user.")
    kafka_ssl_cafile: Path | None = Field(None, description="Certificates that the broker's must be signed by.")
    kafka_ssl_certfile: Path | None = Field(None, description="Our own certificate, where the broker asks for one.")
    kafka_ssl_keyfile: Path | None = Field(None, description="Private key of our certificate.")
    requests_topic: str = Field("edits.requests.v1", description="Topic on which corrections come in.")
    results_topic: str = Field("edits.results.v1", description="Topic that says what became of each correction.")
    dead_letter_topic: str = Field("edits.requests.v1.dlq", description="Topic of messages that can never be edits.")
    intake_mode: Literal["assigned", "group"] = Field("assigned", description="How intake gets its partitions.")
    intake_group: str = Field("corrigenda-intake", description="Consumer group, where intake_mode is group.")
    intake_max_records: int = Field(
        2_000, ge=1, le=10_000, description="Most messages a poll; nor more than the client fetches at once, 1 MiB."
    )
    max_ahead: Annotated[Duration, Field(ge=timedelta(0))] = Field(
        MAX_AHEAD, description="How far ahead of the database's clock a correction may be dated."
    )
    api_url: str = Field("", description="HTTP API that `submit` sends corrections to; the topic itself if empty.")
    api_token: SecretStr = Field(SecretStr(""), description="Token for it, NAME:PASSWORD.")
    api_token_file: Path | None = Field(None, description="File with that token, which nobody else may read.")
    web_host: str = Field("127.0.0.1", description="Address that the HTTP API and the pages listen on.")
    web_port: int = Field(8080, ge=0, le=65_535, description="Port of the same; 0 takes any free one.")
    web_max_body_bytes: int = Field(4_000_000, ge=10_000, description="Largest body of a request to the HTTP API.")
    web_corrections_per_minute: int = Field(600, ge=1, description="Corrections that one token may send a minute.")
    webhook_private_networks: bool = Field(
        False,
        description="Whether webhooks may be plain http, and lead to loopback and private networks; never link-local.",
    )
    web_longest_wait: Annotated[Duration, Field(gt=timedelta(0))] = Field(
        timedelta(hours=1), description="No more corrections of a lineage are taken while its oldest waits longer."
    )
    web_session_key: SecretStr = Field(
        SecretStr(""), description="Secret that signs sessions of the pages; without one, each start ends all sessions."
    )
    oidc_issuer: str = Field(
        "", description="OpenID Connect provider that people log in to the pages with, https://…; empty for none."
    )
    oidc_client_id: str = Field("", description="What that provider calls these pages.")
    oidc_client_secret: SecretStr = Field(SecretStr(""), description="Secret of that client; none of a public one.")
    oidc_name_claim: str = Field(
        "preferred_username", description="Claim of its ID tokens that is a person's name here (`person add`)."
    )
    web_public_url: str = Field(
        "", description="Address of the HTTP API as browsers see it, where a proxy is before it: https://…."
    )
    mlflow_uri: str = Field("", description="MLflow tracking and registry server.")
    mlflow_public_uri: str = Field("", description="That server as browsers reach it, where that is another address.")
    mlflow_username: str = Field("", description="Corrigenda's own user there; none where it lets everybody in.")
    mlflow_password: SecretStr = Field(SecretStr(""), description="Password of that user.")
    mlflow_tells_actor: bool = Field(
        False, description="Whether that server says who asks for a decision (infra/mlflow_login.py)."
    )
    anchor_file: Path | None = Field(
        None, description="File that only grows, in which the control worker notes where the audit chains stand."
    )
    anchor_bucket: str = Field(
        "", description="s3://bucket/prefix of such notes, in place of the file; each has the store's own time."
    )
    anchor_endpoint: str = Field("", description="Address of that object store, where it is not Amazon's.")
    artifact_root: Path = Field(Path(".corrigenda/artifacts"), description="Folder of deltas and ledger rows.")
    artifact_bucket: str = Field(
        "", description="s3://bucket/prefix of deltas and ledger rows; artifact_root is then this machine's cache."
    )
    artifact_endpoint: str = Field("", description="Address of that object store, where it is not Amazon's.")
    lease_ttl: Duration = Field(timedelta(seconds=30), description="Life of a lease; renewed every third of it.")
    batch_max_wait: Duration = Field(
        timedelta(seconds=2), description="A batch closes when its oldest edit waited this, or its newest a quarter."
    )
    max_attempts: int = Field(3, ge=1, description="Failures of an edit by itself before it is dead.")
    batches_per_turn: int = Field(8, ge=1, description="Batches of a lineage before others of its base have a turn.")
    command_timeout: Duration = Field(
        timedelta(minutes=10),
        description="Limit of a command to the ranks, or a step of it, without waits for a processor.",
    )
    warm_base: Path | None = Field(None, description="Base that an edit worker loads before its first doorbell.")
    warm_base_digest: str = Field("", description="Its digest, as `corrigenda lineage list --json` shows it.")
    warm_base_task: Literal["causal", "seq2seq", "classifier"] = Field("causal", description="Its task.")
    num_ranks: int = Field(1, ge=1, description="Ranks behind an edit worker.")
    deepspeed_config: Path | None = Field(None, description="DeepSpeed JSON; None for infra/deepspeed/zero3.json.")
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="How processes log: text on a terminal and JSON elsewhere, or always one of them."
    )
    health_host: str = Field("127.0.0.1", description="Address of /livez, /readyz and /metrics of each process.")
    health_port: int = Field(0, ge=0, le=65535, description="Port of them; 0 for none, or where a file says it.")
    health_file: Path | None = Field(
        None, description="File in which a process says at which free port they are, for Prometheus' file_sd_configs."
    )
    traces_endpoint: str = Field("", description="OTLP/HTTP endpoint of traces, http://…:4318/v1/traces; empty: none.")
    failpoint: str = Field("", description="Testing only: name[:nth] of the boundary at which to die.")

    @property
    def mlflow_pages(self) -> str:
        """Where people open MLflow's pages."""
        return self.mlflow_public_uri or self.mlflow_uri

    def require(self, *names: str) -> None:
        """Check that settings without a usable default are given.

        Raises:
            Misconfigured: naming the first one that is missing.
        """
        for name in names:
            value = getattr(self, name)
            text = value.get_secret_value() if isinstance(value, SecretStr) else str(value or "")
            if not text:
                raise Misconfigured(f"expected CORRIGENDA_{name.upper()} to be set, got nothing")


def load_settings() -> Settings:
    """Read the settings from all their sources.

    Raises:
        Misconfigured: naming each setting that is wrong; values of secrets are not shown.
    """
    try:
        return Settings(_secrets_dir=SECRETS_FOLDER if SECRETS_FOLDER.is_dir() else None)
    except ValidationError as error:
        parts = [f"CORRIGENDA_{'_'.join(map(str, d['loc'])).upper()}: {expected_of(d)}" for d in error.errors()]
        raise Misconfigured("; ".join(parts)) from None
