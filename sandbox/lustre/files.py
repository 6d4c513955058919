"""What the double remembers of each file: the HSM mask, and the request under way.

One small JSON file per inode below ``<folder>/files``, so that a rename keeps the state and a replaced file
starts afresh, as with Lustre's FIDs; ``<folder>/queue`` holds an empty marker per request that is under way.
Writers hold the lock; readers need none, since records are replaced atomically.
"""

from __future__ import annotations

import fcntl
import fnmatch
import json
import os
import time
from pathlib import Path

# contracts §5.1
EXISTS, DIRTY, RELEASED, ARCHIVED, NORELEASE, NOARCHIVE, LOST = 0x1, 0x2, 0x4, 0x8, 0x10, 0x20, 0x40

# The order in which lfs prints the words, which is not the order of the bits.
WORDS = (
    (RELEASED, "released"),
    (EXISTS, "exists"),
    (DIRTY, "dirty"),
    (ARCHIVED, "archived"),
    (NORELEASE, "never_release"),
    (NOARCHIVE, "never_archive"),
    (LOST, "lost_from_hsm"),
)


class Record:
    """One file. ``size`` and ``mtime_ns`` are the file's when it was last archived.

    ``action`` is the request under way (``ARCHIVE``…, empty for none), ``running`` whether it was begun, and
    ``due`` the Unix time at which it may end.
    """

    __slots__ = ("action", "archive_id", "due", "inode", "mask", "moved", "mtime_ns", "path", "running", "size")

    def __init__(self, inode: int, path: str) -> None:
        self.inode = inode
        self.path = path
        self.mask = 0
        self.archive_id = 0
        self.size = -1
        self.mtime_ns = -1
        self.action = ""
        self.running = False
        self.due = 0.0
        self.moved = 0

    def copied(self, found: os.stat_result) -> bool:
        """Whether the file is still what was archived."""
        return (found.st_size, found.st_mtime_ns) == (self.size, self.mtime_ns)


class Faults:
    """The knobs of ``faults.json``; see :class:`sandbox.lfs.LustreFaults` for what each does."""

    def __init__(self, values: dict[str, object]) -> None:
        self._values = values

    def number(self, name: str, default: float) -> float:
        """A knob with a number."""
        value = self._values.get(name, default)
        return value if isinstance(value, int | float) else default

    def on(self, name: str) -> bool:
        """A knob that is on or off."""
        return bool(self._values.get(name, False))

    def hits(self, name: str, path: str) -> bool:
        """Whether one of the knob's glob patterns matches the absolute path."""
        patterns = self._values.get(name, [])
        return isinstance(patterns, list) and any(fnmatch.fnmatchcase(path, str(each)) for each in patterns)


class Lock:
    """The double's one lock between processes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


class Files:
    """The state folder ``<shared disk>/.lfs``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config: dict[str, str] = json.loads((folder / "config.json").read_text())
        self.root = config["root"]
        self.endpoint = config["endpoint"]
        self.bucket = config["bucket"]
        self.prefix = config["prefix"]

    def faults(self) -> Faults:
        """The knobs as they stand now; none when there is no such file."""
        try:
            return Faults(json.loads((self.folder / "faults.json").read_text()))
        except FileNotFoundError:
            return Faults({})

    def take_eagain(self) -> bool:
        """Use up one refusal of the coordinator, if any is left. The lock must be held."""
        path = self.folder / "faults.json"
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:
            return False
        left = int(values.get("eagain", 0))
        if left > 0:
            values["eagain"] = left - 1
            self._replace(path, values)
        return left > 0

    def lock(self) -> Lock:
        """Hold this while changing records."""
        return Lock(self.folder / "lock")

    def on_lustre(self, path: str) -> bool:
        """Whether an existing path lies on the file system."""
        real = os.path.realpath(path)
        return real == self.root or real.startswith(self.root + "/")

    def key(self, path: str) -> str:
        """The object key of a file, as the data repository association maps it."""
        return "/".join(part for part in (self.prefix, os.path.relpath(path, self.root)) if part)

    def get(self, path: str, found: os.stat_result) -> Record:
        """What is known of the file at ``path``; the mask holds DIRTY if it changed since it was archived."""
        record = self.load(found.st_ino) or Record(found.st_ino, path)
        if record.path != path:
            if not record.copied(found):  # the inode was freed and used again for another file
                record = Record(found.st_ino, path)
            record.path = path
        if record.mask & ARCHIVED and not record.mask & RELEASED and not record.copied(found):
            record.mask |= DIRTY
        return record

    def load(self, inode: int) -> Record | None:
        """The record of an inode as it was written, or ``None``."""
        try:
            values = json.loads((self.folder / "files" / f"{inode}.json").read_text())
        except FileNotFoundError:
            return None
        record = Record(inode, values["path"])
        for name, value in values.items():
            setattr(record, name, value)
        return record

    def put(self, record: Record) -> None:
        """Write a record and its place in the queue. The lock must be held."""
        marker = self.folder / "queue" / str(record.inode)
        if record.action:
            marker.touch()
        values = {name: getattr(record, name) for name in Record.__slots__}
        self._replace(self.folder / "files" / f"{record.inode}.json", values)
        if not record.action:
            marker.unlink(missing_ok=True)

    def queued(self) -> list[Record]:
        """Every request under way, oldest first."""
        records = [self.load(int(marker.name)) for marker in (self.folder / "queue").iterdir()]
        return sorted((each for each in records if each and each.action), key=lambda each: each.due)

    def enqueue(self, record: Record, action: str, delay: float) -> None:
        """Record a request. The lock must be held."""
        record.action, record.running, record.moved = action, False, 0
        record.due = time.time() + delay
        self.put(record)

    def _replace(self, path: Path, values: object) -> None:
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(values))
        temporary.rename(path)
