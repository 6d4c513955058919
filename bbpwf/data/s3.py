"""S3 objects, as far as confirming an archive needs them. The only place of this layer that talks to boto3."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from bbpwf.errors import DataError, LimitExceeded
from bbpwf.settings import AwsSettings

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError

_CHUNK = 1024 * 1024


@dataclass(frozen=True)
class ObjectInfo:
    """One object: ``size`` in bytes, ``etag`` without its quotes.

    ``sha256`` is the hex digest of the whole content, empty when the object carries none (FSx's exports) or
    only a checksum of its parts' checksums.
    """

    size: int
    etag: str
    sha256: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


class Objects(Protocol):
    """What confirming an archive asks of an object store."""

    def head(self, bucket: str, key: str) -> ObjectInfo | None:
        """The object's facts, ``None`` when it does not exist. Raises DataError."""
        ...

    def sha256(self, bucket: str, key: str, *, limit: int) -> str:
        """Hex digest of the content, by reading it.

        Raises:
            LimitExceeded: it is larger than ``limit`` bytes.
            DataError: it does not exist, or cannot be read.
        """
        ...


class ObjectStore:
    """S3, or what speaks like it. Thread-safe. Credentials come from botocore's own chain."""

    def __init__(
        self, aws: AwsSettings, *, connect_timeout_s: float = 10, read_timeout_s: float = 60, attempts: int = 5
    ) -> None:
        import boto3  # a third of a second: only those who archive pay it
        from botocore.config import Config

        self._where = aws.endpoint_url or f"s3 {aws.region}"
        # boto3-stubs types the client only with its s3 extra, which this project does not install
        self._client: Any = boto3.session.Session(region_name=aws.region).client(
            "s3",
            endpoint_url=aws.endpoint_url or None,
            config=Config(
                connect_timeout=connect_timeout_s,
                read_timeout=read_timeout_s,
                retries={"mode": "standard", "total_max_attempts": attempts},
                s3={"addressing_style": "path"} if aws.endpoint_url else {},
            ),
        )

    def head(self, bucket: str, key: str) -> ObjectInfo | None:
        """The object's facts, ``None`` when it (or its bucket) does not exist.

        Raises:
            DataError: S3 refused or cannot be reached; retryable in the latter case.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer = self._client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
        except ClientError as error:
            if _status(error) == 404:
                return None
            raise _refused(error, f"s3://{bucket}/{key}") from error
        except BotoCoreError as error:
            raise self._unreachable(error) from error
        return ObjectInfo(
            size=answer["ContentLength"],
            etag=answer.get("ETag", "").strip('"'),
            sha256=_whole_sha256(answer),
            metadata=dict(answer.get("Metadata", {})),
        )

    def sha256(self, bucket: str, key: str, *, limit: int) -> str:
        """Hex digest of the content, streamed; never more than ``limit`` bytes are read.

        Raises:
            LimitExceeded: it is larger than ``limit`` bytes.
            DataError: it does not exist, S3 refused, or the connection broke.
        """
        from botocore.exceptions import BotoCoreError, ClientError
        from urllib3.exceptions import HTTPError

        digest = hashlib.sha256()
        read = 0
        try:
            body = self._client.get_object(Bucket=bucket, Key=key)["Body"]
            try:
                for chunk in body.iter_chunks(_CHUNK):
                    read += len(chunk)
                    if read > limit:
                        raise LimitExceeded(f"s3://{bucket}/{key} is larger than {limit} bytes")
                    digest.update(chunk)
            finally:
                body.close()
        except ClientError as error:
            raise _refused(error, f"s3://{bucket}/{key}") from error
        except (BotoCoreError, HTTPError) as error:
            raise self._unreachable(error) from error
        return digest.hexdigest()

    def _unreachable(self, error: BotoCoreError | Exception) -> DataError:
        from botocore.exceptions import NoCredentialsError, PartialCredentialsError

        hopeless = isinstance(error, NoCredentialsError | PartialCredentialsError)
        return DataError(f"S3 did not answer: {str(error)[:300]}", where=self._where, retryable=not hopeless)


def _whole_sha256(answer: Mapping[str, Any]) -> str:
    """The checksum in hex, unless it is a composite: then it ends in ``-<number of parts>``."""
    encoded = answer.get("ChecksumSHA256", "")
    if not encoded or "-" in encoded or answer.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT":
        return ""
    raw = base64.b64decode(encoded)
    return raw.hex() if len(raw) == hashlib.sha256().digest_size else ""


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _refused(error: ClientError, what: str) -> DataError:
    code = error.response.get("Error", {}).get("Code", "")
    status = _status(error)
    hint = "Allow s3:GetObject and s3:ListBucket on the bucket to the service's role." if status == 403 else ""
    return DataError(
        f"S3 refused to show {what}: {code or status}", hint=hint, retryable=status >= 500 or status == 429
    )
