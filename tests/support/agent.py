"""A cluster agent in memory: keeps the promises of :class:`bbpwf.cluster.api.RunAgent`, runs scripts on this machine."""

from __future__ import annotations

import glob
import os
import posixpath
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bbpwf.cluster.api import READ_LIMIT
from bbpwf.cluster.jobs import Archived, ClusterInfo, ExitRecord, JobSpec, JobView, Observation, TaskReport
from bbpwf.errors import Conflict, InvalidInput, LimitExceeded, NotFound
from bbpwf.states import JobState
from bbpwf.transport.protocol import Completed, FileStat


class MemoryAgent:
    """One run's agent. ``root`` is the cluster's disk.

    With ``hold`` set, jobs stay QUEUED until :meth:`release`. ``started`` counts how often each key ran.
    """

    def __init__(self, root: Path, run_id: str = "r1", *, slots: int = 4, hold: bool = False) -> None:
        self.root = root
        self._owner = os.getpid()
        self.incarnation = 1
        self.calls: Counter[str] = Counter()
        self.submitted: list[list[JobSpec]] = []
        self.reports: dict[str, TaskReport] = {}
        self.report_log: list[TaskReport] = []
        self.started: Counter[str] = Counter()
        self.state = "ready"
        self._run_id = run_id
        self._changed = threading.Condition()
        self._version = 0
        self._specs: dict[str, JobSpec] = {}
        self._views: dict[str, JobView] = {}
        self._tried_in: dict[str, int] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._closed = False
        self._go = threading.Event()
        if not hold:
            self._go.set()
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="memory-agent")
        (root / "logs").mkdir(parents=True, exist_ok=True)
        self._folder().mkdir(parents=True, exist_ok=True)

    # -- for tests

    def release(self) -> None:
        self._go.set()

    def hold(self) -> None:
        self._go.clear()

    def resume(self) -> None:
        self.incarnation += 1

    def views(self) -> list[JobView]:
        with self._changed:
            return list(self._views.values())

    def spec(self, key: str) -> JobSpec:
        return self._specs[key]

    def file(self, path: str) -> Path:
        return Path(self._absolute(path))

    def end(self, key: str, state: JobState, *, reason: str = "", code: int | None = None) -> None:
        """Let a held job end as a test wants it to."""
        record = None if code is None else ExitRecord(code=code, started=time.time(), ended=time.time())
        self._move(key, state, reason=reason, record=record)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            for key, view in self._views.items():
                if not view.state.terminal:
                    self._views[key] = view.model_copy(update={"state": JobState.CANCELLED})
            processes = list(self._processes.values())
        self._go.set()
        for process in processes:
            process.kill()
        self._pool.shutdown()

    # -- the protocol

    @property
    def run_id(self) -> str:
        return self._run_id

    def submit(self, jobs: Sequence[JobSpec]) -> list[JobView]:
        self.calls["submit"] += 1
        self.submitted.append(list(jobs))
        with self._changed:
            for spec in jobs:
                known = self._specs.get(spec.key)
                if known is not None and (known.script, known.resources) != (spec.script, spec.resources):
                    raise Conflict(f"job {spec.key} is known with another script or other resources")
            for spec in jobs:
                view = self._views.get(spec.key)
                again = (
                    view is not None
                    and view.state.terminal
                    and not view.state.succeeded
                    and self._tried_in[spec.key] < self.incarnation
                )
                if view is None or again:
                    self._specs[spec.key] = spec
                    self._tried_in[spec.key] = self.incarnation
                    self._plan(spec, 1 if view is None else view.attempt + 1)
            return [self._views[spec.key] for spec in jobs]

    def observe(self, since: int = 0, *, wait: float = 0.0) -> Observation:
        self.calls["observe"] += 1
        deadline = time.monotonic() + min(wait, 30.0)
        with self._changed:
            while self._version <= since and not self._closed and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            return Observation(version=self._version, jobs=tuple(v for v in self._views.values() if v.version > since))

    def job(self, key: str) -> JobView:
        with self._changed:
            if key not in self._views:
                raise NotFound(f"there is no job {key!r}")
            return self._views[key]

    def cancel(self, keys: Sequence[str] | None = None) -> None:
        self.calls["cancel"] += 1
        with self._changed:
            chosen = [key for key in (self._views if keys is None else keys) if key in self._views]
        for key in chosen:
            with self._changed:
                live = not self._views[key].state.terminal
                process = self._processes.get(key)
            if live and process is not None:
                process.terminate()
            elif live:
                self._move(key, JobState.CANCELLED, reason="cancelled on request")

    def cluster(self, name: str = "default") -> ClusterInfo:
        return ClusterInfo(name=name, kind="local", state=self.state, data_root=str(self.root))

    def stat(self, paths: Sequence[str], *, cluster: str = "default") -> list[FileStat | None]:
        self.calls["stat"] += 1
        found: list[FileStat | None] = []
        for path in paths:
            try:
                stat = Path(self._absolute(path)).stat()
                found.append(FileStat(stat.st_size, stat.st_mtime, Path(self._absolute(path)).is_dir()))
            except OSError:
                found.append(None)
        return found

    def exists(self, paths: Sequence[str], *, cluster: str = "default") -> list[bool]:
        self.calls["exists"] += 1
        return [Path(self._absolute(path)).exists() for path in paths]

    def glob(self, pattern: str, *, cluster: str = "default", limit: int = 10_000) -> list[str]:
        found = sorted(glob.glob(self._absolute(pattern)))  # noqa: PTH207 the pattern may be absolute
        if len(found) > limit:
            raise LimitExceeded(f"more than {limit} files match")
        return found

    def read(self, path: str, *, cluster: str = "default", offset: int = 0, limit: int = READ_LIMIT) -> bytes:
        self.calls["read"] += 1
        try:
            with Path(self._absolute(path)).open("rb") as file:
                file.seek(offset)
                return file.read(min(limit, READ_LIMIT))
        except FileNotFoundError:
            raise NotFound(f"there is no file {path}") from None

    def write(self, path: str, data: bytes, *, cluster: str = "default") -> None:
        self.calls["write"] += 1
        if len(data) > READ_LIMIT:
            raise LimitExceeded(f"{len(data)} bytes are too many for one write")
        target = Path(self._absolute(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(target.name + ".part")
        draft.write_bytes(data)
        draft.replace(target)

    def write_many(self, files: Sequence[tuple[str, bytes]], *, cluster: str = "default") -> None:
        for path, data in files:
            self.write(path, data)

    def remove(self, paths: Sequence[str], *, cluster: str = "default") -> None:
        for path in paths:
            absolute = Path(self._absolute(path))
            if not absolute.is_relative_to(self.root):
                raise InvalidInput(f"{path} is not below the data root")
            if absolute.is_dir():
                shutil.rmtree(absolute)
            else:
                absolute.unlink(missing_ok=True)

    def run(
        self, argv: Sequence[str], *, cluster: str = "default", stdin: bytes = b"", timeout: float = 60.0
    ) -> Completed:
        done = subprocess.run(list(argv), input=stdin, capture_output=True, timeout=timeout, check=False)
        return Completed(done.returncode, done.stdout, done.stderr)

    def archive(self, paths: Sequence[str], *, cluster: str = "default", timeout: float = 3600.0) -> list[Archived]:
        return []

    def access_token(self) -> str:
        return "token-of-nobody"

    def report(self, tasks: Sequence[TaskReport]) -> None:
        self.calls["report"] += 1
        self.report_log.extend(tasks)
        self.reports.update({each.task_id: each for each in tasks})

    # -- inside

    def _folder(self) -> Path:
        return self.root / "runs" / self._run_id

    def _absolute(self, path: str) -> str:
        assert os.getpid() == self._owner, "an agent's connections must not be used after a fork"
        return posixpath.normpath(posixpath.join(str(self._folder()), path))

    def _plan(self, spec: JobSpec, attempt: int) -> None:
        self._version += 1
        self._views[spec.key] = JobView(
            key=spec.key,
            run_id=spec.run_id,
            task_id=spec.task_id,
            index=spec.index,
            label=spec.label,
            name=spec.name,
            state=JobState.QUEUED,
            attempt=attempt,
            version=self._version,
            stdout=str(self.root / "logs" / f"{spec.key}.{attempt}.log"),
        )
        self._changed.notify_all()
        self._pool.submit(self._work, spec, attempt)

    def _move(self, key: str, state: JobState, *, reason: str = "", record: ExitRecord | None = None) -> None:
        with self._changed:
            if self._views[key].state.terminal:
                return
            self._version += 1
            self._views[key] = self._views[key].model_copy(
                update={"state": state, "version": self._version, "reason": reason, "exit": record}
            )
            self._changed.notify_all()

    def _work(self, spec: JobSpec, attempt: int) -> None:
        self._go.wait()
        log = Path(self._views[spec.key].stdout)
        with self._changed:
            view = self._views[spec.key]
            if view.state.terminal or view.attempt != attempt:
                return
            self.started[spec.key] += 1
            workdir = Path(self._absolute(spec.workdir or "."))
            workdir.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as file:
                process = subprocess.Popen(
                    ["bash", "-c", spec.script],
                    cwd=workdir,
                    env={"PATH": os.environ["PATH"], **dict(spec.env)},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            self._processes[spec.key] = process
        started = time.time()
        self._move(spec.key, JobState.RUNNING)
        code = process.wait()
        with self._changed:
            del self._processes[spec.key]
        record = ExitRecord(code=code if code >= 0 else 128 - code, started=started, ended=time.time())
        if code < 0:
            self._move(spec.key, JobState.CANCELLED, reason=f"ended by signal {-code}", record=record)
        else:
            self._move(spec.key, JobState.FAILED if code else JobState.COMPLETED, record=record)
