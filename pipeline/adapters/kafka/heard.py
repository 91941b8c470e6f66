"""Failures that the client library only writes to its log, and then tries again for ever."""

from __future__ import annotations

import logging
from typing import Self

from kafka.errors import KafkaError, KafkaTimeoutError, RequestTimedOutError


class HeardFailures(logging.Handler):
    """The newest failure that a logger of the library told of while this was entered; a timeout if nothing else."""

    def __init__(self, logger: str) -> None:
        """Name the logger."""
        super().__init__(logging.WARNING)
        self._logger = logging.getLogger(logger)
        self.last: KafkaError | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the failure among what was logged; on the library's thread."""
        for said in record.args or ():
            # A try that a deadline cut off hides no refusal of a try before it.
            is_late = isinstance(said, RequestTimedOutError) and self.last is not None
            if isinstance(said, KafkaError) and not isinstance(said, KafkaTimeoutError) and not is_late:
                self.last = said

    def taken(self) -> KafkaError | None:
        """Return the failure, and forget it."""
        last, self.last = self.last, None
        return last

    def __enter__(self) -> Self:
        self._logger.addHandler(self)
        return self

    def __exit__(self, *raised: object) -> None:
        self._logger.removeHandler(self)
