"""A bucket of an object store that speaks S3: its address, its client, and what its errors mean to us."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from pipeline.domain.errors import IntegrityBroken, LoginRefused, Misconfigured, Unavailable

CONNECT_SECONDS, READ_SECONDS = 5, 60
ATTEMPTS = 4
GONE = ("404", "NoSuchKey", "NotFound")
"""Codes of an object that is not there."""
_REFUSED = ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch")


class InBucket:
    """What lies below a prefix of a bucket.

    It connects at the first use; credentials come from where boto3 looks for them.

    Args:
        bucket_url: s3://bucket or s3://bucket/prefix.
        endpoint: address of a store that is not Amazon's.
        setting: the setting that names the bucket, for messages.

    Raises:
        Misconfigured: if the URL names no bucket.
    """

    def __init__(self, bucket_url: str, *, endpoint: str, setting: str) -> None:
        scheme, _, place = bucket_url.partition("://")
        self._bucket, _, prefix = place.strip("/").partition("/")
        if scheme != "s3" or not self._bucket:
            raise Misconfigured(f"expected s3://bucket or s3://bucket/prefix as {setting}, got {place!r}")
        self._prefix = f"{prefix}/" if prefix else ""
        self._endpoint = endpoint

    def make_bucket(self) -> None:
        """Make the bucket if it is not there; one that is kept by others has to be there."""
        with self._answering(self._bucket):
            try:
                self._client.head_bucket(Bucket=self._bucket)
            except self._errors.ClientError as error:
                if code_of(error) not in (*GONE, "NoSuchBucket"):
                    raise
                self._client.create_bucket(Bucket=self._bucket)

    @contextmanager
    def _answering(self, what: str) -> Iterator[None]:
        """Turn the errors of boto3 into ours."""
        try:
            yield
        except self._errors.ClientError as error:
            code = code_of(error)
            where = f"{what} in the bucket {self._bucket!r}"
            if code in GONE:
                raise IntegrityBroken(f"expected {where}, got nothing") from error
            if code in _REFUSED:
                said = f"the object store does not let us reach {where} ({code}): its keys, as boto3 finds them"
                raise LoginRefused(f"{said} (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), or their policy") from error
            if code == "NoSuchBucket":
                raise Misconfigured(f"expected the bucket {self._bucket!r} in the object store, got {code}") from error
            raise Unavailable(f"the object store cannot give {where} now: {code}") from error
        except self._errors.NoCredentialsError as error:
            raise LoginRefused("expected credentials for the object store, got none") from error
        except (self._errors.BotoCoreError, self._transfer_errors, OSError) as error:
            raise Unavailable(f"the object store does not answer for {what}: {str(error)[:200]}") from error

    @cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        config = Config(
            connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS, retries={"total_max_attempts": ATTEMPTS}
        )
        return boto3.client("s3", endpoint_url=self._endpoint or None, config=config)

    @cached_property
    def _errors(self) -> Any:
        import botocore.exceptions

        return botocore.exceptions

    @cached_property
    def _transfer_errors(self) -> Any:
        import boto3.exceptions

        return boto3.exceptions.Boto3Error


def code_of(error: Any) -> str:
    """Return the code of what the store answered; empty if it named none."""
    return str(error.response.get("Error", {}).get("Code", ""))
