"""Who serves whom: one small document, changed only by compare-and-swap.

All decisions to start an instance pass through it, so that however many gateways decide at once, a project gets one
instance, and no more instances are started than may be. With a cap of some hundred it stays far below what one item of
DynamoDB holds (400 KB).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from bbpwf.errors import InstanceFailed
from bbpwf.settings import AwsSettings


class Entry(BaseModel):
    """One project's line. Times are seconds since the Unix epoch."""

    model_config = ConfigDict(frozen=True)

    virtual_lab_id: str
    project_id: str
    generation: int
    """Grows with every new instance of the project, and starts at the time: a lost roster repeats none."""
    wanted: bool = True
    """Whether the project is to have an instance: not since it went to rest, until somebody asks."""
    instance: str = ""
    """What the backend calls it; empty while it is being started, and after a start that failed."""
    sub: str = ""
    claimed_at: float = 0
    claimed_until: float = 0
    """Until then, whoever wrote this line is starting the instance."""
    failures: int = 0
    """How many instances in a row ended badly."""
    not_before: float = 0
    """No start before this time."""
    reason: str = ""
    """Why the last one ended or did not start."""

    def rested(self) -> Entry:
        """The line once its instance went to rest."""
        return self.model_copy(
            update={
                "generation": self.generation + 1,
                "wanted": False,
                "instance": "",
                "claimed_until": 0.0,
                "failures": 0,
                "not_before": 0.0,
                "reason": "",
            }
        )

    def holds(self, now: float) -> bool:
        """Whether it counts against the cap."""
        return bool(self.instance) or now < self.claimed_until


Entries = Mapping[str, Entry]
"""By project key."""
_ENTRIES = TypeAdapter(dict[str, Entry])


class StaleRoster(Exception):
    """Somebody else changed the roster since it was read: read it again."""


class Roster(Protocol):
    """Where the document is kept. Both calls raise InstanceFailed when it cannot be reached."""

    def read(self) -> tuple[int, Entries]:
        """Version and content; version 0 and nothing if there is none yet."""
        ...

    def write(self, version: int, entries: Entries) -> None:
        """Replace the content that had this version.

        Raises:
            StaleRoster: it has another one by now; nothing was changed.
        """
        ...


class FileRoster:
    """In a file of one machine, for any number of processes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)

    def read(self) -> tuple[int, Entries]:
        """Version and content."""
        try:
            kept = json.loads(self._path.read_text())
            return int(kept["version"]), _ENTRIES.validate_python(kept["entries"])
        except FileNotFoundError:
            return 0, {}
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise InstanceFailed("the gateway's roster cannot be read", where=str(self._path)) from error

    def write(self, version: int, entries: Entries) -> None:
        """Replace it under a lock."""
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.read()[0] != version:
                raise StaleRoster
            draft = self._path.with_suffix(".new")
            with draft.open("w") as file:
                file.write(json.dumps({"version": version + 1, "entries": _ENTRIES.dump_python(dict(entries))}))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._path)


class DynamoRoster:
    """In one item of a DynamoDB table whose hash key is ``id``."""

    _ID = "instances"

    def __init__(self, table: str, settings: AwsSettings) -> None:
        self._where = f"DynamoDB table {table}"
        limits = Config(connect_timeout=2, read_timeout=4, retries={"mode": "standard", "total_max_attempts": 3})
        self._table = table
        self._client: Any = boto3.session.Session().client(
            "dynamodb", region_name=settings.region, endpoint_url=settings.endpoint_url or None, config=limits
        )

    def read(self) -> tuple[int, Entries]:
        """Version and content, as they are now."""
        try:
            answer = self._client.get_item(TableName=self._table, Key={"id": {"S": self._ID}}, ConsistentRead=True)
        except (BotoCoreError, ClientError) as error:
            raise self._failed(error) from error
        item: dict[str, dict[str, str]] = answer.get("Item", {})
        if not item:
            return 0, {}
        try:
            return int(item["version"]["N"]), _ENTRIES.validate_json(item["entries"]["S"])
        except (KeyError, ValueError, ValidationError) as error:
            raise InstanceFailed("the gateway's roster makes no sense", where=self._where) from error

    def write(self, version: int, entries: Entries) -> None:
        """Put it if the version is still the same."""
        item = {
            "id": {"S": self._ID},
            "version": {"N": str(version + 1)},
            "entries": {"S": _ENTRIES.dump_json(dict(entries)).decode()},
        }
        condition: dict[str, Any] = {"ConditionExpression": "attribute_not_exists(id)"}
        if version:
            condition = {
                "ConditionExpression": "#v = :v",
                "ExpressionAttributeNames": {"#v": "version"},
                "ExpressionAttributeValues": {":v": {"N": str(version)}},
            }
        try:
            self._client.put_item(TableName=self._table, Item=item, **condition)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") == "ConditionalCheckFailedException":
                raise StaleRoster from error
            raise self._failed(error) from error
        except BotoCoreError as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> InstanceFailed:
        return InstanceFailed(f"the gateway's roster cannot be reached ({type(error).__name__})", where=self._where)
