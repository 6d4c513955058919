"""Jobs as processes of this machine: the same wrapper, leases, logs and exit records as on a cluster.

A process outlives the agent that started it (it has a session of its own), and names itself in its lease by process id
and start time: there the agent finds it after a restart. What has no lease is started (again): of two processes the
lease lets one run, whichever agent started it.
Time limits are kept; memory limits are not.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bbpwf import faults
from bbpwf.cluster.backend import Accepted, Answer, Entry, Refused, Submission
from bbpwf.cluster.jobs import Resources
from bbpwf.cluster.retries import NO_LIMITS, PartitionLimits
from bbpwf.cluster.spool import MODULES, job_script, manifest
from bbpwf.cluster.submissions import element_id
from bbpwf.errors import TransportError
from bbpwf.states import JobState
from bbpwf.transport.protocol import Transport

_log = logging.getLogger(__name__)

_CANCELLED = "cancelled"
"""What the lease of an element names that is not to begin."""
_KILL_WAIT_S = 10.0
_TICK_S = 0.2


@dataclass(frozen=True)
class _Element:
    folder: Path
    batch_id: str
    position: int
    scheduler_id: str
    time_limit: float | None
    throttle: int


@dataclass
class _Running:
    element: _Element
    pid: int
    process: subprocess.Popen[bytes] | None
    deadline: float | None
    told: JobState | None = None
    kill_at: float | None = None


class LocalBackend:
    """Runs up to ``slots`` jobs at once. ``transport`` must reach this same machine."""

    def __init__(self, transport: Transport, *, slots: int) -> None:
        self._transport = transport
        self._slots = slots
        self._guard = threading.Lock()
        self._waiting: deque[_Element] = deque()
        self._running: dict[tuple[str, int], _Running] = {}
        self._ended: dict[tuple[str, int], tuple[str, JobState | None]] = {}
        self._stopping = threading.Event()
        self._something = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="local jobs", daemon=True)
        self._thread.start()

    @property
    def kind(self) -> Literal["slurm", "local"]:
        """``local``."""
        return "local"

    @property
    def transport(self) -> Transport:
        """This machine."""
        return self._transport

    @property
    def array_limit(self) -> int:
        """There is no natural limit; this keeps one submission's folder handy."""
        return 1000

    def limits(self, resources: Resources) -> PartitionLimits:
        """There are none."""
        del resources
        return NO_LIMITS

    def command(self, submission: Submission) -> list[str]:
        """What each element is started with."""
        return ["bash", f"{submission.folder.path}/job.sh"]

    def submit(self, submissions: Sequence[Submission]) -> dict[str, Answer]:
        """Write each submission's folder and queue its elements; known ones are not queued twice."""
        return {s.batch_id: self._submit(s) for s in submissions}

    def _submit(self, submission: Submission) -> Answer:
        if submission.resources.gpus or submission.resources.dependency or submission.components:
            return Refused("the local backend has no GPUs, no dependencies between jobs and no heterogeneous jobs")
        folder = Path(submission.folder.path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            text, extra = manifest(list(submission.scripts))
            for name, content in {"job.sh": job_script(submission.folder), "manifest": text, **extra}.items():
                draft = folder / f"{name}.new"  # an element that an earlier agent started may be reading it
                draft.write_text(content)
                draft.replace(folder / name)
        except OSError as error:
            raise TransportError(f"cannot write {folder}: {error.strerror}", where="local") from error
        limit = submission.resources.time_limit
        size = len(submission.scripts)
        with self._guard:
            known = {e.batch_id for e in self._waiting} | {place[0] for place in self._running}
            if submission.batch_id not in known:
                for position in range(size):
                    self._enlist(
                        _Element(
                            folder,
                            submission.batch_id,
                            position,
                            element_id(submission.batch_id, position, size),
                            limit.total_seconds() if limit else None,
                            submission.throttle,
                        )
                    )
        self._something.set()
        return Accepted(submission.batch_id)

    def readopt(self, submissions: Iterable[Submission]) -> None:
        """After a restart of the agent: take over the elements of accepted submissions that have not ended."""
        for submission in submissions:
            self._submit(submission)

    def _enlist(self, element: _Element) -> None:
        place = (element.batch_id, element.position)
        if any(element.folder.glob(f"exit.{element.position}.*")):
            self._ended[place] = (element.scheduler_id, None)
            return
        owner = _owner(element)
        if owner is not None:
            pid = _alive(owner)
            if pid is None:
                state = JobState.CANCELLED if owner == _CANCELLED else JobState.NODE_FAIL
                self._ended[place] = (element.scheduler_id, state)
            else:
                self._running[place] = _Running(element, pid, None, None)
            return
        self._waiting.append(element)

    def queue(self) -> list[Entry]:
        """All elements that this process knows."""
        with self._guard:
            waiting = [_entry(e, e.scheduler_id, JobState.QUEUED, "Resources") for e in self._waiting]
            running = [_entry(r.element, r.element.scheduler_id, JobState.RUNNING) for r in self._running.values()]
            done = [
                Entry(batch_id, position, scheduler_id, state, str(state))
                for (batch_id, position), (scheduler_id, state) in self._ended.items()
                if state is not None
            ]
        return waiting + running + done

    def accounted(self, scheduler_ids: Sequence[str]) -> dict[str, Entry]:
        """There is none."""
        del scheduler_ids
        return {}

    def throttle(self, scheduler_ids: Sequence[str], limit: int) -> None:
        """Elements beyond the limit that run already go on."""
        with self._guard:
            self._waiting = deque(
                replace(element, throttle=limit) if element.batch_id in scheduler_ids else element
                for element in self._waiting
            )
        self._something.set()

    def cancel(self, scheduler_ids: Sequence[str]) -> None:
        """SIGTERM to the job's group, SIGKILL after ten seconds; waiting ones never start."""
        wanted = set(scheduler_ids)
        with self._guard:
            kept: deque[_Element] = deque()
            for element in self._waiting:
                if element.scheduler_id in wanted:
                    self._keep_from_starting(element)
                else:
                    kept.append(element)
            self._waiting = kept
            for running in self._running.values():
                if running.element.scheduler_id in wanted and running.told is None:
                    self._end(running, JobState.CANCELLED)

    def _keep_from_starting(self, element: _Element) -> None:
        """Nothing has run it so far, unless an agent that was killed had started it a moment before."""
        with contextlib.suppress(FileExistsError):
            _lease(element).symlink_to(_CANCELLED)
        pid = _alive(_owner(element) or "")
        if pid is None:
            self._ended[element.batch_id, element.position] = (element.scheduler_id, JobState.CANCELLED)
        else:
            self._running[element.batch_id, element.position] = _Running(element, pid, None, None)

    def _end(self, running: _Running, why: JobState) -> None:
        running.told = why
        running.kill_at = time.monotonic() + _KILL_WAIT_S
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGTERM)

    def close(self) -> None:
        """Start no more; what runs goes on."""
        self._stopping.set()
        self._something.set()
        self._thread.join(5.0)
        for running in self._running.values():
            if running.process is not None and running.process.poll() is None:
                running.process.returncode = 0  # let go on purpose: Popen would warn that it still runs

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self._something.wait(_TICK_S if self._running else 5.0)
            self._something.clear()
            with self._guard:
                self._reap()
                self._start_some()

    def _reap(self) -> None:
        now = time.monotonic()
        for place, running in list(self._running.items()):
            gone = running.process.poll() is not None if running.process else not _started(running.pid)
            owner = _alive(_owner(running.element) or "") if gone else None
            if owner is not None:  # an earlier agent had started it, too, and that one was first
                self._running[place] = other = _Running(running.element, owner, None, running.deadline)
                if running.told is not None:
                    self._end(other, running.told)
            elif gone:
                del self._running[place]
                failed = None if any(running.element.folder.glob(f"exit.{place[1]}.*")) else JobState.FAILED
                self._ended[place] = (running.element.scheduler_id, running.told or failed)
                self._something.set()
            elif running.kill_at is not None and now > running.kill_at:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(running.pid, signal.SIGKILL)
                    _kill_children(running.pid)
            elif running.deadline is not None and running.told is None and now > running.deadline:
                self._end(running, JobState.TIMEOUT)

    def _start_some(self) -> None:
        skipped: deque[_Element] = deque()
        while self._waiting and len(self._running) < self._slots and not self._stopping.is_set():
            element = self._waiting.popleft()
            peers = sum(1 for r in self._running.values() if r.element.batch_id == element.batch_id)
            if element.throttle and peers >= element.throttle:
                skipped.append(element)
                continue
            try:
                self._start(element)
            except OSError as error:  # a full disk, too many processes: it waits
                _log.warning("%s cannot be started now: %s", element.scheduler_id, error)
                skipped.append(element)
                break
        self._waiting.extendleft(reversed(skipped))

    def _start(self, element: _Element) -> None:
        place = (element.batch_id, element.position)
        kept = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR", *MODULES)
        env = {name: os.environ[name] for name in kept if name in os.environ}
        env |= {"BBPWF_INDEX": str(element.position), "BBPWF_ID": element.scheduler_id, "BBPWF_LOCAL": "1"}
        with (element.folder / f"log.{element.position}").open("ab") as log:
            process = subprocess.Popen(
                ["bash", str(element.folder / "job.sh")],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        faults.point("local.started")
        deadline = None if element.time_limit is None else time.monotonic() + element.time_limit
        self._running[place] = _Running(element, process.pid, process, deadline)


def _entry(element: _Element, scheduler_id: str, state: JobState, reason: str = "") -> Entry:
    return Entry(element.batch_id, element.position, scheduler_id, state, str(state), reason)


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot (proc(5), field 22); empty if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _lease(element: _Element) -> Path:
    return element.folder / f"lease.{element.position}"


def _owner(element: _Element) -> str | None:
    """Whom an element's lease names; ``None`` if nobody has taken it."""
    try:
        return str(_lease(element).readlink())
    except OSError:
        return None


def _alive(owner: str) -> int | None:
    """The process id in ``scheduler id:process id:start time`` if that very process still runs."""
    _, _, noted = owner.partition(":")
    pid, _, started = noted.partition(":")
    return int(pid) if started and _started(int(pid)) == started else None


def _kill_children(session: int) -> None:
    """SIGKILL to every process of a session: the script has a group of its own within it."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, ProcessLookupError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                os.kill(int(entry.name), signal.SIGKILL)
