"""Services and processes that are killed under load: the supervisor starts them, and everything goes on by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra.local import ProcessState
from tests.support.living_stack import LivingStack, living_stack
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def living(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivingStack]:
    with living_stack(tmp_path_factory.mktemp("living") / "home") as living:
        living.everything_goes_on()
        yield living


@pytest.mark.parametrize("victim", ["redis", "postgres", "mlflow", "kafka", "intake", "control-worker"])
def test_everything_goes_on_by_itself_after_a_kill(victim: str, living: LivingStack) -> None:
    before = living.process(victim)
    num_before = len(living.acknowledged)
    living.kill(victim)
    eventually(lambda: living.process(victim).restarts > before.restarts, lambda: f"the restart; {living.logs()}")
    living.everything_goes_on()
    assert len(living.acknowledged) > num_before, "corrections kept coming"
    assert all(process.state is ProcessState.RUNNING for process in living.stack.status()), living.logs()
    if victim != "kafka":  # the embedded broker keeps nothing
        since = living.acknowledged[num_before:]
        eventually(lambda: not living.missing() & set(since), lambda: f"corrections that were taken; {living.logs()}")
