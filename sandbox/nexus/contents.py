"""Where files' bytes are: on disk volumes and in S3 buckets, as Delta lays them out."""

from __future__ import annotations

import base64
import hashlib
import mimetypes
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sandbox.nexus.delta import Delta
from sandbox.nexus.errors import Refused
from sandbox.nexus.store import Revision

_CHUNK = 1024 * 1024


def save(
    delta: Delta, storage: Revision, body: BinaryIO, filename: str, media_type: str, announced: str | None
) -> dict[str, Any]:
    """Keep uploaded bytes; answers the file's attributes.

    Raises:
        Refused: FileContentLengthIsMissing, FileTooLarge or UnexpectedSaveError.
    """
    on_s3 = storage.source["@type"] == "S3Storage"
    if on_s3 and announced is None and delta.panel.now.generation != "1.9":
        reason = "Linking or uploading a file cannot be performed without a 'x-nxs-file-content-length' header."
        raise Refused(400, "FileContentLengthIsMissing", reason)
    digest, size = _measure(body)
    if size > delta.panel.now.max_file_bytes:
        reason = f"File size exceeds the maximum of {delta.panel.now.max_file_bytes} bytes."
        raise Refused(413, "FileTooLarge", reason)
    uid = str(uuid.uuid4())
    key = "/".join([delta.names.project, "files", *uid.replace("-", "")[:8], filename])
    if not on_s3:
        target = delta.volume / key
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            while chunk := body.read(_CHUNK):
                out.write(chunk)
    else:
        if announced is not None and announced != str(size):
            raise Refused(500, "UnexpectedSaveError", f"File '{filename}' could not be saved: length mismatch.")
        checksum = base64.b64encode(bytes.fromhex(digest)).decode()
        _s3(delta).put_object(
            Bucket=storage.source["bucket"], Key=key, Body=body, ContentType=media_type, ChecksumSHA256=checksum
        )
    return _attributes(storage, filename, media_type, size, digest, key, "Client", uid)


def link(delta: Delta, storage: Revision, path: str, filename: str, media_type: str, origin: str) -> dict[str, Any]:
    """Take an existing S3 object for a file; answers its attributes. A missing key is Delta's own 500.

    Raises:
        Refused: InvalidFilePath, a storage that cannot link, UnexpectedFetchError.
    """
    if storage.source["@type"] != "S3Storage":
        kind = storage.source["@type"]
        raise Refused(400, "UnsupportedOperation", f"Linking a file is not supported for storages of type '{kind}'.")
    key = path.lstrip("/")
    last = key.rsplit("/", 1)[-1]
    if not last:
        raise Refused(400, "InvalidFilePath", f"Linking a file cannot be performed without a filename in '{path}'.")
    from botocore.exceptions import ClientError

    try:
        found = _s3(delta).head_object(Bucket=storage.source["bucket"], Key=key, ChecksumMode="ENABLED")
    except ClientError as error:
        reason = f"File '{key}' could not be fetched from bucket '{storage.source['bucket']}'."
        raise Refused(500, "UnexpectedFetchError", reason) from error
    checksum = found.get("ChecksumSHA256", "")
    digest = base64.b64decode(checksum).hex() if checksum and "-" not in checksum else ""
    guessed = mimetypes.guess_type(last)[0] or "application/octet-stream"
    size = int(found["ContentLength"])
    return _attributes(storage, filename or last, media_type or guessed, size, digest, key, origin, str(uuid.uuid4()))


def read(delta: Delta, found: Revision) -> Iterator[bytes]:
    """The bytes of a file, in chunks."""
    known = found.attributes
    storage = delta.store.fetch("storage", known["storage"])
    if storage.source["@type"] == "S3Storage":
        answer = _s3(delta).get_object(Bucket=storage.source["bucket"], Key=known["location"])
        yield from answer["Body"].iter_chunks(_CHUNK)
        return
    with (delta.volume / known["location"]).open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def s3_client(endpoint: str) -> Any:
    """A client of the sandbox's S3, whose credentials mean nothing."""
    import boto3

    return boto3.session.Session(aws_access_key_id="delta", aws_secret_access_key="delta").client(  # noqa: S106 -- moto checks no signature
        "s3", endpoint_url=endpoint, region_name="us-east-1"
    )


def volume(state: Path) -> Path:
    """The folder of the default disk storage."""
    return state / "volume"


def _s3(delta: Delta) -> Any:
    if delta.s3 is None:
        raise Refused(400, "StorageNotAccessible", "This double was started without --s3-endpoint.")
    return delta.s3


def _measure(body: BinaryIO) -> tuple[str, int]:
    digest = hashlib.sha256()
    size = 0
    body.seek(0)
    while chunk := body.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
    body.seek(0)
    return digest.hexdigest(), size


def _attributes(
    storage: Revision, filename: str, media_type: str, size: int, digest: str, location: str, origin: str, uid: str
) -> dict[str, Any]:
    return {
        "storage": storage.id,
        "filename": filename,
        "media_type": media_type,
        "bytes": size,
        "digest": digest,
        "location": location,
        "origin": origin,
        "uuid": uid,
    }
