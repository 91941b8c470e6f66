"""The environment of processes that compute: what libraries of theirs read, and none of the secrets of this process.

Ranks, trainings and whatever else a command starts to load a model read a base and write files. They need no database,
no broker and no registry, and whoever makes one of them run his code shall find no key to any. Servers of models and
the process behind `ask` get the login to what they read besides, by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

PASSED_ON = frozenset(
    {
        "PATH", "HOME", "USER", "LOGNAME", "SHELL", "PWD", "TMPDIR", "TZ", "LANG", "LANGUAGE", "VIRTUAL_ENV",
        "TERM", "COLORTERM", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CC", "CXX",
        "CORRIGENDA_BASE_REF", "CORRIGENDA_CACHE", "CORRIGENDA_FAILPOINT", "CORRIGENDA_LOG",
    }
)  # fmt: skip
"""Variables that are passed on."""

PASSED_ON_FAMILIES = (
    "LC_", "LD_", "GLIBC_", "MALLOC_", "PYTHON", "XDG_", "MPL", "COVERAGE_", "COV_CORE_",
    "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "BLIS_", "NUMEXPR_",
    "CUDA", "NVIDIA_", "NVTE_", "NCCL_", "GLOO_", "TORCH", "PYTORCH_", "TRITON_",
    "HIP_", "HSA_", "ROCM_", "ROCR_", "RCCL_", "ONEAPI_", "ZE_", "CCL_", "UCX_", "FI_", "RDMAV_",
    "DS_", "DEEPSPEED_", "ACCELERATE_", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "SAFETENSORS_",
)  # fmt: skip
"""Beginnings of the names of variables that are passed on: the system's, and those of libraries that compute."""

SECRET = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|KEY)(_|$)", re.IGNORECASE)
"""What the name of a secret has in it; such a variable is never passed on, whatever it begins with."""


def computing_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a process that computes.

    Its threads sleep while they wait for each other, unless the environment says otherwise: those that spin, as is
    usual, get in the way of everything else on a small machine and so of themselves.

    Args:
        environment: what to choose from; this process's own if None.
    """
    given = os.environ if environment is None else environment
    return {"OMP_WAIT_POLICY": "PASSIVE"} | {
        name: value
        for name, value in given.items()
        if (name in PASSED_ON or name.startswith(PASSED_ON_FAMILIES)) and not SECRET.search(name)
    }
