"""The environment of processes that compute holds what their libraries read, and no secret of this process."""

from __future__ import annotations

import pytest

from pipeline.computing import computing_environment
from pipeline.config import Settings


def test_no_setting_of_ours_is_passed_on_but_those_that_name_folders_or_boundaries() -> None:
    given = {f"CORRIGENDA_{name.upper()}": "secret" for name in Settings.model_fields}
    assert computing_environment(given).keys() == {"OMP_WAIT_POLICY", "CORRIGENDA_FAILPOINT"}


@pytest.mark.parametrize(
    "name",
    ["MLFLOW_TRACKING_PASSWORD", "AWS_SESSION_TOKEN", "PGPASSWORD", "PGSERVICEFILE", "KAFKA_SASL_JAAS", "HF_TOKEN",
     "HF_HUB_TOKEN", "NCCL_API_KEY", "TORCH_SECRET", "DATABASE_URL", "REDISCLI_AUTH", "ANTHING_ELSE"],
)  # fmt: skip
def test_a_secret_is_not_passed_on_whatever_its_name_begins_with(name: str) -> None:
    assert name not in computing_environment({name: "x"})


@pytest.mark.parametrize(
    "name",
    ["PATH", "HOME", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "CUDA_VISIBLE_DEVICES", "NCCL_SOCKET_IFNAME",
     "GLOO_SOCKET_IFNAME", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF", "TORCHINDUCTOR_CACHE_DIR",
     "DS_ACCELERATOR", "HF_HOME", "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM", "LC_ALL", "TMPDIR",
     "XDG_CACHE_HOME", "CORRIGENDA_CACHE", "CORRIGENDA_BASE_REF"],
)  # fmt: skip
def test_what_libraries_that_compute_read_is_passed_on(name: str) -> None:
    assert computing_environment({name: "x"})[name] == "x"


def test_threads_sleep_while_they_wait_unless_the_environment_says_otherwise() -> None:
    assert computing_environment({})["OMP_WAIT_POLICY"] == "PASSIVE"
    assert computing_environment({"OMP_WAIT_POLICY": "ACTIVE"})["OMP_WAIT_POLICY"] == "ACTIVE"
