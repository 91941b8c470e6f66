"""What the client library only logs: the refusal is kept, whatever a deadline cuts off after it."""

import logging

from kafka.errors import KafkaTimeoutError, RequestTimedOutError, UnsupportedSaslMechanismError

from pipeline.adapters.kafka.heard import HeardFailures

LOGGER = "tests.kafka_heard"


def test_a_refusal_is_not_hidden_by_a_try_that_a_deadline_cut_off() -> None:
    log, refused, late = logging.getLogger(LOGGER), UnsupportedSaslMechanismError("PLAIN"), RequestTimedOutError("1 ms")
    with HeardFailures(LOGGER) as failures:
        log.warning("failed: %s", late)
        assert failures.last is late
        log.warning("failed: %s", refused)
        log.warning("failed: %s", late)
        log.warning("failed: %s", KafkaTimeoutError("bootstrap"))
        assert failures.taken() is refused
        assert failures.taken() is None
    log.warning("failed: %s", refused)
    assert failures.last is None, "nothing is heard any more"
