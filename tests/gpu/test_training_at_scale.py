"""Training for an 11-billion-parameter base on one accelerator of 80 GB, in bf16."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from tests.benchmarks.training_at_scale import cost_of_training, eleven_billion

pytestmark = pytest.mark.gpu

ASSUMED_STEPS = 20_000
"""Of 10 edits each: what the projection assumes."""


@pytest.fixture(scope="module", autouse=True)
def _needs_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.fail("expected a CUDA device for `-m gpu`, got none")


@pytest.mark.timeout(1800)
def test_eleven_billion_parameters_fit_and_the_loss_is_a_number(record_property: Callable[[str, object], None]) -> None:
    cost = cost_of_training(eleven_billion(), device="cuda", dtype=torch.bfloat16, num_steps=10)
    record_property("seconds_per_step", cost.seconds_per_step)
    record_property("peak_bytes", cost.peak_bytes)
    record_property("projected_hours", ASSUMED_STEPS * cost.seconds_per_step / 3600)
    print(cost)
    assert cost.num_parameters > 10.5e9
    assert math.isfinite(cost.loss)
    assert cost.moved > 0
    assert cost.peak_bytes is not None
    assert cost.peak_bytes < 80e9
