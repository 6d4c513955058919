"""Bringing files of a Lustre file system into its archive, and confirming each one there.

Nobody's word is taken for it. A file counts as archived when Lustre says so (archived, not dirty, not lost),
*and* its object is in the bucket with the same size, *and*, where that can be known, with the same content.
An accepted request says nothing, nor does an idle one: a failed archive looks like one that was never asked for.
"""

from __future__ import annotations

import logging
import posixpath
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from bbpwf import retry
from bbpwf.clock import Clock
from bbpwf.cluster.jobs import Archived
from bbpwf.data import hsm
from bbpwf.data.s3 import Objects
from bbpwf.errors import ArchiveError, BbpwfError, DataError, DeadlineExceeded, TransportError
from bbpwf.transport.protocol import Completed

_log = logging.getLogger(__name__)
_LOOK = (1000, hsm.BATCH, 1)  # files asked at once, and again in smaller numbers when some cannot be seen
_GONE, _NOT_LUSTRE, _NO_COMMAND = 2, 25, 127  # exit codes: ENOENT, ENOTTY, and the shell's own
_LAST_COMMAND_S = 5.0  # a command that begins within the limit may end this much after it
_NAMED = 50  # files named in one error message
T = TypeVar("T")


class ClusterCommands(Protocol):
    """What the archiver needs of the cluster; the agent implements it."""

    def run(self, argv: Sequence[str], *, stdin: bytes, timeout: float) -> Completed:
        """Run a command as the cluster's ordinary user, where the file system is mounted.

        Used for looking only, so it is repeated when it raises a retryable error.
        """
        ...

    def privileged(self, script: str, *, name: str, timeout: float) -> Completed:
        """Run a bash script as the administrator and wait for its end; ``name`` is for people.

        stdout may hold stderr too, and may be cut at its start. Raises BbpwfError if it could not be run.
        """
        ...


@dataclass(frozen=True)
class ArchiveLocation:
    """The data repository association: folder ``root`` of the file system is ``s3://bucket/prefix``."""

    bucket: str
    prefix: str
    root: str

    def key(self, path: str) -> str | None:
        """The object key of an absolute, normal path, or ``None`` if it lies outside."""
        root = posixpath.normpath(self.root)
        if not path.startswith(root.rstrip("/") + "/"):
            return None
        relative = posixpath.relpath(path, root)
        prefix = self.prefix.strip("/")
        return f"{prefix}/{relative}" if prefix else relative


@dataclass(frozen=True)
class ArchiveLimits:
    """How long, how often and how much. Seconds and bytes."""

    poll_first_s: float = 0.5
    poll_longest_s: float = 30.0
    requests: int = 3
    """Times that one file is asked for before it is given up."""
    files_per_job: int = 2000
    """Files of one privileged job: keeps its script far below Slurm's limit."""
    command_timeout_s: float = 120.0
    hash_files: int = 500
    hash_bytes: int = 20 * 1024**3
    """Files and bytes hashed by one command (a larger file alone)."""
    hash_bytes_per_s: float = 50e6
    """The slowest reading to be patient with."""
    read_back: int = 256 * 1024**2
    """Objects without a checksum are read back up to this size; above it, size alone must do."""
    object_grace_s: float = 60.0
    """How long an object may be missing or old after Lustre reported it archived."""
    object_readers: int = 8


@dataclass
class _File:
    """One file on its way."""

    path: str
    key: str
    requests: int = 0
    idle: int = 0  # looks in a row that found neither an archived file nor a request
    seen: str = "not looked at yet"
    size: int = -1
    sha256: str = ""


@dataclass
class _Work:
    """One call of :meth:`Archiver.archive`."""

    ends: float
    grace_ends: float | None = None  # set when the first object is found missing or wrong
    failed: dict[str, str] = field(default_factory=dict)
    confirmed: dict[str, Archived] = field(default_factory=dict)
    pending: dict[str, _File] = field(default_factory=dict)

    def fail(self, file: _File, why: str) -> None:
        self.pending.pop(file.path, None)
        self.failed[file.path] = why


class Archiver:
    """The confirmed archive of one file system.

    Args:
        commands: the cluster.
        objects: the bucket's store.
        location: which folder is which bucket.
        clock: time.
        privileged: whether requests can be made as administrator. If not, files are only watched until the
            file system's own auto-export has brought them home.
        limits: see :class:`ArchiveLimits`.
    """

    def __init__(
        self,
        commands: ClusterCommands,
        objects: Objects,
        location: ArchiveLocation,
        *,
        clock: Clock,
        privileged: bool,
        limits: ArchiveLimits | None = None,
    ) -> None:
        self._commands = commands
        self._objects = objects
        self._location = location
        self._clock = clock
        self._privileged = privileged
        self._limits = limits or ArchiveLimits()

    def archive(self, paths: Sequence[str], *, timeout: float) -> list[Archived]:
        """Archive and confirm regular files, named by absolute paths; the answer has one entry per distinct path.

        Repeating the call is cheap and harmless: what is archived is only confirmed again.

        Raises:
            InvalidInput: a path is not absolute, normal and UTF-8.
            ArchiveError: names the files that could not be confirmed, and why; all others were brought to an end.
            DeadlineExceeded: ``timeout`` seconds were over first; what was archived stays archived.
            TransportError: the cluster could not be reached.
        """
        distinct = list(dict.fromkeys(hsm.check_path(path) for path in paths))
        work = _Work(ends=self._clock.monotonic() + timeout)
        try:
            self._admit(work, distinct)
            wait = self._limits.poll_first_s
            while work.pending:
                if self._confirm(work, self._look(work)):
                    wait = self._limits.poll_first_s
                self._request_idle(work)
                if work.pending:
                    self._clock.sleep(min(wait, self._left(work)))
                    wait = min(2 * wait, self._limits.poll_longest_s)
        except DeadlineExceeded as error:
            if not work.failed:
                raise DeadlineExceeded(
                    f"after {timeout:g} s, {len(work.pending)} of {len(distinct)} files are not confirmed in the "
                    f"archive: {_listed({file.path: file.seen for file in work.pending.values()})}",
                    where=self._where,
                    hint="What was archived stays archived; run it again to go on.",
                ) from error
            work.failed |= {file.path: f"not confirmed in time: {file.seen}" for file in work.pending.values()}
        if work.failed:
            raise ArchiveError(
                f"{len(work.failed)} of {len(distinct)} files could not be confirmed in the archive: "
                f"{_listed(work.failed)}",
                where=self._where,
            )
        return [work.confirmed[path] for path in distinct]

    @property
    def _where(self) -> str:
        return f"s3://{self._location.bucket}/{self._location.prefix}".rstrip("/")

    def _left(self, work: _Work) -> float:
        left = work.ends - self._clock.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the limit for archiving was reached")
        return left

    # -- looking -------------------------------------------------------------------------------------------

    def _run(self, work: _Work, what: str, argv: Sequence[str], stdin: bytes = b"", patience: float = 0.0) -> Completed:
        limit = min(self._limits.command_timeout_s + patience, max(self._left(work), _LAST_COMMAND_S))
        try:
            return retry.call(
                what, lambda: self._commands.run(argv, stdin=stdin, timeout=limit), clock=self._clock, attempts=3
            )
        except TransportError as error:
            if error.retryable and self._clock.monotonic() >= work.ends:
                raise DeadlineExceeded(f"the limit for archiving was reached during {what}") from error
            raise

    def _admit(self, work: _Work, paths: Sequence[str]) -> None:
        """Sort out what cannot be archived; the rest becomes pending."""
        for path in paths:
            if key := self._location.key(path):
                work.pending[path] = _File(path, key)
            else:
                work.failed[path] = f"it is outside {self._location.root}, which is what the archive holds"
        found = self._stat(work, list(work.pending))
        for file in list(work.pending.values()):
            if file.path not in found:
                work.fail(file, "it does not exist")
            elif stat.S_ISDIR(found[file.path].mode):
                work.fail(file, "it is a folder; archive the files in it")
            elif not stat.S_ISREG(found[file.path].mode):
                work.fail(file, "it is not a regular file")
            else:
                file.size = found[file.path].size

    def _stat(self, work: _Work, paths: Sequence[str]) -> dict[str, hsm.Found]:
        answers: dict[str, hsm.Found] = {}
        for batch in _batches(paths, _LOOK[0]):
            done = self._run(work, "stat", hsm.stat_argv(), hsm.nul_separated(batch))
            if done.truncated or done.exit_code not in (0, 123):  # 123: xargs' word for "some failed"
                raise ArchiveError(f"cannot look at files on the cluster: exit {done.exit_code}: {_end(done)}")
            answers |= hsm.parse_stat(done.stdout)
        return answers

    def _look(self, work: _Work) -> list[_File]:
        """Ask Lustre for every pending file; answers those that are archived and current."""
        paths = list(work.pending)
        # requests first: a file that is idle and then still not archived has no request that could yet succeed
        actions = self._ask(work, paths, "hsm_action", hsm.parse_hsm_action) if self._privileged else {}
        states = self._ask(work, paths, "hsm_state", hsm.parse_hsm_state)
        current = []
        for path in paths:
            file, state, action = work.pending.get(path), states.get(path), actions.get(path)
            if file is None or state is None:
                continue
            file.seen = str(state) if not action or action.idle else f"{state}; {action.verb} {action.phase}"
            file.idle = file.idle + 1 if action and action.idle and not state.current else 0
            if state.current:
                current.append(file)
            elif state.no_archive:
                work.fail(file, "it is marked never to be archived (lfs hsm_set --noarchive)")
        return current

    def _ask(
        self,
        work: _Work,
        paths: Sequence[str],
        verb: str,
        parse: Callable[[bytes, Sequence[str]], dict[str, T]],
        sizes: Sequence[int] = _LOOK,
    ) -> dict[str, T]:
        """One answer per path. A batch that does not succeed as a whole is asked again in smaller ones."""
        answers: dict[str, T] = {}
        argv = hsm.hsm_state_argv if verb == "hsm_state" else hsm.hsm_action_argv
        for batch in _batches(paths, sizes[0]):
            alone = len(batch) == 1
            stdin = b"" if alone else hsm.nul_separated(batch)
            done = self._run(work, f"lfs {verb}", argv(batch) if alone else argv(), stdin)
            if done.exit_code == _NO_COMMAND:
                raise ArchiveError(f"the cluster has no lfs command: {_end(done)}", where=self._where)
            if done.exit_code == 0 and not done.truncated:
                answers |= parse(done.stdout, batch)
            elif not alone:
                answers |= self._ask(work, batch, verb, parse, sizes[1:] if len(sizes) > 1 else sizes)
            elif file := work.pending.get(batch[0]):
                if done.exit_code == _GONE:
                    work.fail(file, "it vanished while it was being archived")
                elif done.exit_code == _NOT_LUSTRE:
                    work.fail(file, "it is not on a Lustre file system")
                else:
                    file.seen = f"its state cannot be seen: {_end(done)}"
        return answers

    # -- asking --------------------------------------------------------------------------------------------

    def _request_idle(self, work: _Work) -> None:
        """Request what was never requested, or whose request ended without success; give up on what had its share."""
        # two looks in a row, so that a request on its way between Lustre's parts is not taken for one that failed
        idle = [file for file in work.pending.values() if file.idle >= 2 or (file.idle and not file.requests)]
        for file in idle:
            if file.requests >= self._limits.requests:
                times = "once" if file.requests == 1 else f"{file.requests} times"
                work.fail(file, f"it was requested {times}, and each request ended without archiving it: {file.seen}")
        self._request(work, [file for file in idle if file.path in work.pending])

    def _request(self, work: _Work, files: Sequence[_File]) -> None:
        for batch in _batches(files, self._limits.files_per_job):
            paths = [file.path for file in batch]
            _log.info("requesting the archive of %d files", len(batch))
            done = self._commands.privileged(
                hsm.archive_script(paths), name=f"archive {len(batch)} files", timeout=self._left(work)
            )
            if done.exit_code == hsm.NO_PRIVILEGE:
                raise ArchiveError(
                    "the administrator's login may not use sudo on the cluster, so nothing can be archived",
                    where=self._where,
                    hint="Check the admin key and user, or let the file system export by itself.",
                )
            if done.exit_code not in (0, 1):
                raise ArchiveError(f"the archive job ended with exit code {done.exit_code}: {_end(done)}")
            refused = hsm.parse_archive_report(done.stdout, paths)
            for file in batch:
                file.requests += 1
                file.idle = 0
                code, text = refused.get(file.path, (0, ""))
                if code == _EAGAIN:
                    file.seen = f"Lustre's coordinator takes no requests now: {text}"
                elif code:
                    work.fail(file, f"Lustre refused the request (exit {code}): {text}")

    # -- confirming ----------------------------------------------------------------------------------------

    def _confirm(self, work: _Work, files: Sequence[_File]) -> bool:
        """Confirm files that Lustre holds for archived; whether any was brought to its end."""
        before = len(work.pending)
        for batch in _hash_batches(files, self._limits):
            patience = sum(file.size for file in batch) / self._limits.hash_bytes_per_s
            paths = [file.path for file in batch]
            done = self._run(work, "sha256sum", hsm.sha256_argv(), hsm.nul_separated(paths), patience)
            digests = hsm.parse_sha256(done.stdout)
            found = self._stat(work, paths)
            # last of all the state: as long as it is clean, what was hashed is what was archived
            states = self._ask(work, paths, "hsm_state", hsm.parse_hsm_state)
            ready = []
            for file in batch:
                if file.path not in work.pending:
                    continue
                if file.path not in digests or file.path not in found:
                    work.fail(file, f"it could not be read on the cluster: {_end(done)}")
                elif (state := states.get(file.path)) and state.current:
                    file.size, file.sha256 = found[file.path].size, digests[file.path]
                    ready.append(file)
                else:
                    file.seen = "it changed while it was being archived"
            self._confirm_objects(work, ready)
        return len(work.pending) < before

    def _confirm_objects(self, work: _Work, files: Sequence[_File]) -> None:
        """Look for each object until it is right or the grace, which all share, is over."""
        wait = self._limits.poll_first_s
        left = list(files)
        while left:
            with ThreadPoolExecutor(self._limits.object_readers) as readers:
                problems = list(readers.map(self._object_problem, left))
            wrong = []
            for file, problem in zip(left, problems, strict=True):
                if problem:
                    file.seen = problem
                    wrong.append(file)
                else:
                    url = f"s3://{self._location.bucket}/{file.key}"
                    work.confirmed[file.path] = Archived(path=file.path, url=url, size=file.size, sha256=file.sha256)
                    del work.pending[file.path]
            left = wrong
            if not left:
                return
            if work.grace_ends is None:
                work.grace_ends = self._clock.monotonic() + self._limits.object_grace_s
            if self._clock.monotonic() >= work.grace_ends:
                for file in left:
                    work.fail(file, f"Lustre says that it is archived, but {file.seen}")
                return
            self._clock.sleep(min(wait, self._left(work)))
            wait = min(2 * wait, self._limits.poll_longest_s)

    def _object_problem(self, file: _File) -> str:
        bucket = self._location.bucket
        try:
            info = retry.call(
                f"head {file.key}", lambda: self._objects.head(bucket, file.key), clock=self._clock, attempts=3
            )
            if info is None:
                return f"there is no object s3://{bucket}/{file.key}"
            if info.size != file.size:
                return f"its object s3://{bucket}/{file.key} has {info.size} bytes instead of {file.size}"
            digest = info.sha256
            if not digest and info.size <= self._limits.read_back:
                digest = self._objects.sha256(bucket, file.key, limit=self._limits.read_back)
            if digest and digest != file.sha256:
                return f"its object s3://{bucket}/{file.key} has other content (SHA-256 {digest}, not {file.sha256})"
        except DataError as error:
            return f"its object cannot be checked: {error}"
        except BbpwfError as error:  # grew over the cap between the two looks
            return str(error)
        return ""


_EAGAIN = 11


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _hash_batches(files: Sequence[_File], limits: ArchiveLimits) -> Iterator[list[_File]]:
    batch: list[_File] = []
    total = 0
    for file in files:
        if batch and (len(batch) >= limits.hash_files or total + file.size > limits.hash_bytes):
            yield batch
            batch, total = [], 0
        batch.append(file)
        total += file.size
    if batch:
        yield batch


def _listed(reasons: dict[str, str]) -> str:
    text = "; ".join(f"{path}: {why}" for path, why in list(reasons.items())[:_NAMED])
    return f"{text}; and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else text


def _end(done: Completed) -> str:
    return (done.err.strip() or done.out.strip())[-500:]
