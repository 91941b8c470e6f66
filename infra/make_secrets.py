"""Writes the secrets that compose.yaml mounts, each once: ``python infra/make_secrets.py``. Standard library alone.

A file of the same name from any other keeper of secrets will do as well.
"""

import configparser
import json
import secrets
from pathlib import Path

LOGINS = ("intake", "editor", "control", "console", "web", "serving", "auditor")
"""Processes with a login of their own in the database; the owner's is left to migrations."""
FOLDER = Path(__file__).resolve().parent / "secrets"


def main() -> None:
    """Write what is missing; what is there is kept, so that running it again changes nothing."""
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    postgres = _keep("postgres_password", secrets.token_urlsafe(24))
    redis = _keep("redis_password", secrets.token_urlsafe(24))
    _keep("corrigenda_redis_url", f"redis://:{redis}@redis:6379/0")
    _keep("owner_database_url", f"postgresql://corrigenda:{postgres}@postgres:5432/corrigenda")
    for process in LOGINS:
        login = f"corrigenda_{process}:{secrets.token_urlsafe(24)}"
        _keep(f"{process}_database_url", f"postgresql://{login}@postgres:5432/corrigenda")
    _keep("corrigenda_web_session_key", secrets.token_urlsafe(32))
    _keep("mlflow_forms_key", secrets.token_urlsafe(24))
    _keep("mlflow_password", secrets.token_urlsafe(24))
    s3 = _keep("s3_credentials", _credentials(secrets.token_hex(10), secrets.token_urlsafe(30)))
    _keep("s3_identities", _identities(s3))
    _keep("serving_tokens", secrets.token_urlsafe(24))
    _keep("grafana_password", secrets.token_urlsafe(24))
    _keep("mlflow_store_url", f"postgresql://mlflow:{secrets.token_urlsafe(24)}@postgres:5432/mlflow")


def _credentials(key: str, secret: str) -> str:
    """Return a credentials file as clients of S3 read it."""
    return f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"


def _identities(credentials: str) -> str:
    """Return who may use the object store, in the form that SeaweedFS reads."""
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.read_string(credentials)
    found = parsed["default"]
    keys = [{"accessKey": found["aws_access_key_id"], "secretKey": found["aws_secret_access_key"]}]
    may = ["Admin", "Read", "List", "Tagging", "Write"]
    return json.dumps({"identities": [{"name": "corrigenda", "credentials": keys, "actions": may}]})


def _keep(name: str, value: str) -> str:
    path = FOLDER / name
    if not path.exists():
        path.write_text(value)
        # Readable in the container, where another user reads it; the folder keeps others out on this machine.
        path.chmod(0o444)
    return path.read_text()


if __name__ == "__main__":
    main()
