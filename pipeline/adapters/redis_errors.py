"""What the errors of Redis, and of what reaches it for Celery, mean to us."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.domain.errors import LoginRefused, Unavailable


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turn what Celery, kombu and redis raise into our errors; the URL is not repeated, it may hold a password.

    Raises:
        LoginRefused: if Redis does not take our user or password.
        Unavailable: if it does not answer.
    """
    from kombu.exceptions import KombuError
    from redis.exceptions import AuthenticationError, RedisError

    try:
        yield
    except (KombuError, RedisError, OSError) as error:
        if any(isinstance(one, AuthenticationError) for one in (error, error.__cause__, error.__context__)):
            raise LoginRefused("Redis does not accept the password of CORRIGENDA_REDIS_URL") from error
        raise Unavailable(f"Redis, the Celery broker, does not answer: {str(error)[:200]}") from error
