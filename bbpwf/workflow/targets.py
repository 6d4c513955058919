"""What tasks make: files on a cluster, and resources in the knowledge graph."""

from __future__ import annotations

import contextlib
import contextvars
import io
import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import IO, Any

from luigi.target import Target

from bbpwf.cluster.api import READ_LIMIT
from bbpwf.errors import InvalidInput, LimitExceeded
from bbpwf.transport.protocol import FileStat
from bbpwf.workflow.context import current

OPEN_CAP = 256 * 1024 * 1024
"""Most bytes that :meth:`RemoteTarget.open` reads: it holds the whole file in memory."""

WRITE_CAP = 8 * 1024 * 1024
"""Most bytes that :meth:`RemoteTarget.open` writes: larger files are made by jobs, where the data is."""

STAT_BATCH = 5000
"""Paths asked for in one round trip."""

_seen: contextvars.ContextVar[Mapping[tuple[str, str], bool] | None] = contextvars.ContextVar("seen", default=None)

_absent: contextvars.ContextVar[set[tuple[str, str]] | None] = contextvars.ContextVar("absent", default=None)
"""Folders, by cluster and path, that were not there."""


class RemoteTarget(Target):
    """A file or folder on a cluster.

    Args:
        path: absolute, or relative to the run's folder on the cluster.
        cluster: which cluster.
    """

    def __init__(self, path: str, cluster: str = "default") -> None:
        if not path:
            raise InvalidInput("a RemoteTarget needs a path")
        self.path = path
        self.cluster = cluster

    @property
    def absolute(self) -> str:
        """The path from the root, for commands that run in another folder."""
        return current().absolute(self.path, self.cluster)

    def exists(self) -> bool:
        """Whether something is there; answered without a round trip inside :func:`prefetched`."""
        seen = _seen.get()
        known = seen.get((self.cluster, self.path)) if seen is not None else None
        return self.stat() is not None if known is None else known

    def stat(self) -> FileStat | None:
        """Size, time and kind of what is there; ``None`` if nothing is."""
        return current().agent.stat([self.path], cluster=self.cluster)[0]

    def read_bytes(self, *, cap: int = OPEN_CAP) -> bytes:
        """The whole file.

        Raises:
            NotFound: there is no such file.
            LimitExceeded: it is larger than ``cap`` bytes.
        """
        agent = current().agent
        chunks: list[bytes] = []
        size = 0
        while True:
            chunk = agent.read(self.path, cluster=self.cluster, offset=size, limit=min(READ_LIMIT, cap + 1 - size))
            if not chunk:
                return b"".join(chunks)
            size += len(chunk)
            if size > cap:
                raise LimitExceeded(f"{self.path} is larger than {cap} bytes", hint="Read it in a job instead.")
            chunks.append(chunk)

    def read_text(self, *, cap: int = OPEN_CAP) -> str:
        """The whole file as UTF-8 text."""
        return self.read_bytes(cap=cap).decode()

    def write_bytes(self, data: bytes) -> None:
        """Put ``data`` there, atomically.

        Raises:
            LimitExceeded: it is more than 8 MiB.
        """
        if len(data) > WRITE_CAP:
            raise LimitExceeded(f"{len(data)} bytes for {self.path} are too many", hint="Make it in a job instead.")
        current().agent.write(self.path, data, cluster=self.cluster)

    def write_text(self, text: str) -> None:
        """Put UTF-8 ``text`` there, atomically."""
        self.write_bytes(text.encode())

    def open(self, mode: str = "r") -> IO[Any]:
        """A file object: ``r``/``rb`` holds the whole content, ``w``/``wb`` is sent when it is closed.

        A ``with`` block that ends by an exception writes nothing.
        """
        match mode:
            case "r" | "rt":
                return io.StringIO(self.read_text())
            case "rb":
                return io.BytesIO(self.read_bytes())
            case "w" | "wt":
                return _TextDraft(self)
            case "wb":
                return _BytesDraft(self)
        raise InvalidInput(f"a RemoteTarget opens as r, rb, w or wb, not {mode!r}")

    def remove(self) -> None:
        """Remove the file or folder; absent is fine."""
        current().agent.remove([self.path], cluster=self.cluster)

    def __str__(self) -> str:
        return self.path if self.cluster == "default" else f"{self.cluster}:{self.path}"

    def __repr__(self) -> str:
        return f"RemoteTarget({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteTarget) and (self.cluster, self.path) == (other.cluster, other.path)

    def __hash__(self) -> int:
        return hash((self.cluster, self.path))


class _Draft(io.IOBase):
    """In memory until it is closed; then what was written is sent. Left by an exception or forgotten, nothing is."""

    _target: RemoteTarget | None = None
    getvalue: Callable[[], Any]

    def __init__(self, target: RemoteTarget) -> None:
        super().__init__()
        self._target = target

    def close(self) -> None:
        target, self._target = self._target, None
        if target is not None:
            value = self.getvalue()
            target.write_bytes(value if isinstance(value, bytes) else value.encode())
        super().close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._target = None
        self.close()

    def __del__(self) -> None:
        self._target = None


class _BytesDraft(_Draft, io.BytesIO):
    pass


class _TextDraft(_Draft, io.StringIO):
    pass


class NexusTarget(Target):
    """A resource of the run's Nexus project; it exists unless it is unknown or deprecated.

    Args:
        id: the resource's id, an IRI.
    """

    def __init__(self, id: str) -> None:  # noqa: A002 it is called so in Nexus
        if not id:
            raise InvalidInput("a NexusTarget needs an id")
        self.id = id

    def exists(self) -> bool:
        """Whether the resource is there. Raises NexusError when that cannot be told."""
        found = current().nexus().fetch(self.id)
        return found is not None and not found.deprecated

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"NexusTarget({self.id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NexusTarget) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)


def existence(targets: Sequence[Target]) -> list[bool]:
    """Whether each target exists: one round trip a cluster for all remote ones."""
    with prefetched(targets):
        return [bool(target.exists()) for target in targets]


def absent(targets: Sequence[Target]) -> list[Target]:
    """Those of ``targets`` that do not exist."""
    return [target for target, exists in zip(targets, existence(targets), strict=True) if not exists]


def prefetch(targets: Iterable[Target]) -> dict[tuple[str, str], bool]:
    """Existence by ``(cluster, path)`` of the remote ones among ``targets``, not asking what is already known."""
    known, absent_folders = _seen.get() or {}, _absent.get()
    wanted: dict[str, dict[str, None]] = defaultdict(dict)
    folders: set[tuple[str, str]] = set()
    found: dict[tuple[str, str], bool] = {}
    for target in targets:
        if not isinstance(target, RemoteTarget) or (target.cluster, target.path) in known:
            continue
        if absent_folders is not None and (above := _folders_of(target.path)):
            if any((target.cluster, folder) in absent_folders for folder in above):
                found[target.cluster, target.path] = False
                continue
            folders.add((target.cluster, above[0]))
            wanted[target.cluster][above[0]] = None
        wanted[target.cluster][target.path] = None
    for cluster, unique in wanted.items():
        paths = list(unique)
        for start in range(0, len(paths), STAT_BATCH):
            batch = paths[start : start + STAT_BATCH]
            there = current().agent.exists(batch, cluster=cluster)
            found.update({(cluster, path): each for path, each in zip(batch, there, strict=True)})
    if absent_folders is not None:
        absent_folders.update(each for each in folders if not found[each])
    return found


def _folders_of(path: str) -> list[str]:
    """The folder of a path and those above it, a relative path's last the run's own; none where that is not plain."""
    folders: list[str] = []
    if ".." not in path.split("/"):
        while path not in {"", ".", "/"}:
            path = posixpath.dirname(path)
            folders.append(path or ".")
    return folders


@contextlib.contextmanager
def absence_remembered() -> Iterator[None]:
    """Inside the block, nothing is looked for in a folder that was not there: a new run's graph is seen in one look.

    For when nobody makes anything.
    """
    token = _absent.set(set())
    try:
        yield
    finally:
        _absent.reset(token)


@contextlib.contextmanager
def prefetched(targets: Iterable[Target]) -> Iterator[None]:
    """Inside the block, ``exists()`` of these targets answers from one look taken at its start."""
    known = _seen.get() or {}
    token = _seen.set({**known, **prefetch(targets)})
    try:
        yield
    finally:
        _seen.reset(token)
