"""The two programs that run beside the API for its whole life: the cluster agent and Luigi's scheduler."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx

from bbpwf.clock import Clock
from bbpwf.cluster.control import AgentControl
from bbpwf.errors import BbpwfError, Conflict
from bbpwf.redact import Redactor
from bbpwf.workflow.guarded import KEY
from service.children import Child, holders

_log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
READY_WITHIN_S = 60.0
"""A daemon that does not answer for this long after its start is started anew."""
PREDECESSOR_GRACE_S = 30.0
"""How long something left over from an earlier service may take to end before it is killed."""


def tail(path: Path, *, limit: int = 2000) -> str:
    """The last ``limit`` bytes of a log, empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - limit))
            return file.read(limit).decode(errors="replace").strip()
    except OSError:
        return ""


def end_holders(lock: Path) -> None:
    """Kill whatever still holds a lock after its time: orphans of an earlier service of the same user."""
    for pid in holders(lock):
        _log.warning("process %d of an earlier service did not end by itself: killed", pid)
        os.kill(pid, signal.SIGKILL)


class Daemon:
    """One program that is started, watched, and started again with growing pauses when it ends.

    Args:
        name: for people.
        start: starts it; raises Conflict while an earlier one lives.
        ready: whether it answers now; must not block for more than a second or two.
        lock: the file that an earlier one would hold.
        log: where its output goes.
        clock: for the pauses.
    """

    def __init__(
        self, name: str, start: Callable[[], Child], ready: Callable[[], bool], *, lock: Path, log: Path, clock: Clock
    ) -> None:
        self.name = name
        self.generation = 0
        self._start = start
        self._ready = ready
        self._lock = lock
        self._logfile = log
        self._clock = clock
        self._child: Child | None = None
        self._answered = False
        self._started_at = 0.0
        self._not_before = 0.0
        self._backoff = FIRST_BACKOFF_S
        self._blocked_since: float | None = None
        self.reason = "not started yet"

    def tend(self) -> bool:
        """Do what is due now; whether the program runs and has answered since its start."""
        now = self._clock.monotonic()
        if self._child is None:
            if now >= self._not_before:
                self._try_start(now)
            return False
        code = self._child.exit_code()
        if code is not None:
            self._ended(f"ended with code {code}", now)
            return False
        if not self._answered:
            self._answered = self._ready()
            if self._answered:
                self.reason = ""
                _log.info("%s is ready after %.1f s", self.name, now - self._started_at)
            elif now - self._started_at > READY_WITHIN_S:
                self._child.kill()
                self._ended(f"did not answer within {READY_WITHIN_S:.0f} s", now)
        elif now - self._started_at > 10 * LONGEST_BACKOFF_S:
            self._backoff = FIRST_BACKOFF_S
        return self._answered

    def hang_up(self) -> None:
        """Tell it to end, without waiting."""
        if self._child is not None:
            self._child.hang_up()
            self._child.ask_to_end()

    def stop(self, *, grace: float = 10.0) -> None:
        """Hang up and ask it to end; kill it after ``grace`` seconds."""
        if self._child is None:
            return
        self.hang_up()
        if not self._child.wait(grace):
            _log.warning("%s did not end within %.0f s: killed", self.name, grace)
            self._child.kill()
        self._child = None

    def _try_start(self, now: float) -> None:
        try:
            self._child = self._start()
        except Conflict:
            if self._blocked_since is None:
                self._blocked_since = now
            self.reason = "waiting for one of an earlier service to end"
            if now - self._blocked_since > PREDECESSOR_GRACE_S:
                end_holders(self._lock)
            self._not_before = now + FIRST_BACKOFF_S
            return
        except OSError as error:
            self._ended(f"cannot be started: {error}", now)
            return
        self._blocked_since = None
        self._answered = False
        self._started_at = now
        self.generation += 1
        self.reason = "starting"

    def _ended(self, how: str, now: float) -> None:
        self._child = None
        self._answered = False
        last = tail(self._logfile, limit=500).rpartition("\n")[2]
        self.reason = f"{how}; it said: {last}" if last else how
        self._not_before = now + self._backoff
        _log.error("%s %s; next try in %.1f s", self.name, self.reason, self._backoff)
        self._backoff = min(self._backoff * 2, LONGEST_BACKOFF_S)


def agent_daemon(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    state: Path,
    control: AgentControl,
    redactor: Redactor,
    clock: Clock,
) -> Daemon:
    """The cluster agent. Its environment is ours: it reads the same settings, and it alone reaches the cluster."""
    lock, log = state / "locks" / "agent", state / "log" / "agent.log"

    def start() -> Child:
        return Child("agent", argv, env=env, cwd=state, log=log, lock=lock, redactor=redactor)

    def ready() -> bool:
        try:
            control.ping()
        except BbpwfError:
            return False
        return True

    return Daemon("the cluster agent", start, ready, lock=lock, log=log, clock=clock)


def scheduler_daemon(
    port: int, *, key: str, env: Mapping[str, str], state: Path, redactor: Redactor, clock: Clock
) -> Daemon:
    """Luigi's scheduler on a loopback port, which answers passes made with ``key`` (:mod:`bbpwf.workflow.guarded`).

    Its state file only spares the dashboard a blank page after a restart.
    """
    folder = state / "scheduler"
    lock, log = state / "locks" / "scheduler", state / "log" / "scheduler.log"
    argv = [
        sys.executable,
        "-P",
        "-m",
        "service.leash",
        "SIGTERM",
        str(os.getpid()),
        "--",
        sys.executable,
        "-P",
        "-m",
        "bbpwf.workflow.luigid",
    ]
    argv += ["--address", "127.0.0.1", "--port", str(port), "--state-path", str(folder / "state.pickle")]

    def start() -> Child:
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "luigi.cfg"
        config.write_text(_SCHEDULER_CONFIG)
        (folder / "logging.ini").write_text(_SCHEDULER_LOGGING)
        whole = {**env, "LUIGI_CONFIG_PATH": str(config), KEY: key}
        return Child("scheduler", argv, env=whole, cwd=folder, log=log, lock=lock, redactor=redactor)

    def ready() -> bool:
        try:
            return httpx.head(f"http://127.0.0.1:{port}/", timeout=2.0).status_code == 204
        except httpx.HTTPError:
            return False

    return Daemon("Luigi's scheduler", start, ready, lock=lock, log=log, clock=clock)


_SCHEDULER_CONFIG = """\
[core]
logging_conf_file = logging.ini
[scheduler]
# Workers of a restarted service come back under the same names; finished tasks stay visible for a week.
worker_disconnect_delay = 60
# a failed task stays failed until its run is resumed: bbpwf retries by cause, not by time
retry_delay = -1
remove_delay = 604800
record_task_history = false
"""
_SCHEDULER_LOGGING = """\
[loggers]
keys = root
[handlers]
keys = out
[formatters]
keys = plain
[logger_root]
level = WARNING
handlers = out
[handler_out]
class = StreamHandler
formatter = plain
args = (sys.stdout,)
[formatter_plain]
format = %(asctime)s %(levelname)s %(name)s: %(message)s
"""
