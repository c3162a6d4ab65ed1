"""What the S3 client raises, as the core wants to hear it: gone, replaced, worth another try, or not.

Of an error answer only status and code are shown: its own words may repeat what was sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from botocore import exceptions
from botocore.parsers import ResponseParserError

from loramux.errors import ResolverFailed, SourceChanged

_MAY_HEAL = (
    aiohttp.ClientError,
    exceptions.ConnectionError,
    exceptions.CredentialRetrievalError,
    exceptions.FlexibleChecksumError,
    exceptions.HTTPClientError,
    ResponseParserError,
)
_BUSY = ("RequestTimeout", "SlowDown", "ThrottlingException")  # the last from the service that gives credentials


class ObjectMissing(Exception):
    """The bucket has no object of that key, or of that version; the message is its URL."""


@contextmanager
def translated(place: str) -> Iterator[None]:
    """Raise ObjectMissing, SourceChanged or ResolverFailed for what the client raises inside."""
    try:
        yield
    except exceptions.ClientError as exc:
        raise _of_answer(place, exc) from exc
    except (exceptions.BotoCoreError, aiohttp.ClientError, ResponseParserError) as exc:
        raise ResolverFailed(f"resolver 's3': {place}: {exc}", retryable=isinstance(exc, _MAY_HEAL)) from exc


def _of_answer(place: str, error: exceptions.ClientError) -> Exception:
    metadata = error.response.get("ResponseMetadata", {})
    status = metadata.get("HTTPStatusCode", 0)
    code = error.response.get("Error", {}).get("Code", "")
    # HEAD gives no code; elsewhere a 404 without one comes from what is no S3, and must not look like a miss.
    if code in ("NoSuchKey", "NoSuchVersion") or (status == 404 and error.operation_name == "HeadObject"):
        return ObjectMissing(place)
    if status == 412:
        return SourceChanged(f"resolver 's3': {place} has been replaced")
    hint = "; a key that does not exist gives this, too, where s3:ListBucket is not allowed" if status == 403 else ""
    answer = f"{status} {code}" if code != str(status) else code  # without a body botocore repeats the status
    seconds = metadata.get("HTTPHeaders", {}).get("retry-after", "")
    return ResolverFailed(
        f"resolver 's3': {place}: {answer}{hint}",
        retryable=status >= 500 or status == 429 or code in _BUSY,
        retry_after_seconds=float(seconds) if seconds.isdecimal() else None,
    )
