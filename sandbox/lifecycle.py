"""``up``, ``status`` and ``down`` of a sandbox."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bbpwf.clock import Clock, SystemClock, utc_iso
from sandbox import environment, lfs
from sandbox.keycloak import missing as missing_for_keycloak
from sandbox.layout import Layout, code_version
from sandbox.parts import answers, missing_for_slurm
from sandbox.pids import ProcessId, belonging, boot_id, descendants, end, listener, wait_gone
from sandbox.platform import Platform, Report, choose_ports
from sandbox.slurm import Slurm
from sandbox.state import (
    FILE,
    Part,
    SandboxError,
    SandboxState,
    drop_short_name,
    exclusively,
    load,
    short_name,
    store,
)

_SLURM = ("munged", "slurmctld", "slurmd")
_GRACE_S = 10.0


@dataclass(frozen=True)
class PartStatus:
    """How a part is: ``dead`` (no such process), ``unresponsive`` (alive, does not answer) or ``healthy``."""

    part: Part
    state: Literal["healthy", "unresponsive", "dead"]


def up(
    folder: Path,
    report: Report,
    *,
    service: bool = True,
    backend: Literal["auto", "slurm", "local"] = "auto",
    keycloak: bool | None = None,
    clock: Clock | None = None,
) -> SandboxState:
    """Start the sandbox in ``folder``; one that already runs whole and as asked for is left as it is.

    Where only the service is dead or of older code, it alone is started again: cluster and jobs do not notice.
    Data of an earlier one in the folder are kept (ledger, results, knowledge graph), except what moto held.
    An exception or interrupt ends whatever was started.

    Args:
        folder: absolute, without links; made if absent.
        report: hears what is started.
        service: whether the service is started too.
        backend: ``auto`` takes a real Slurm where there is one, else local processes.
        keycloak: whether the issuer is a real Keycloak; as before if ``None``, which at first is a small double.
        clock: for the time of the start.

    Raises:
        SandboxError: a part does not start, or ``slurm`` or Keycloak was asked for and is not there.
    """
    with exclusively(folder):
        before = load(folder)
        chosen, why = _backend(backend)
        real = keycloak if keycloak is not None else before is not None and before.keycloak
        if real and (lacking := missing_for_keycloak()):
            raise SandboxError(f"no real Keycloak can run here: {', '.join(lacking)} not found")
        if before is not None and before.parts:
            wrong = _unfit(before, service, chosen, real)
            if not wrong:
                report("it is up already")
                return before
            if wrong in _SERVICE_ALONE:
                report(f"{wrong}: starting the service alone")
                _start_service(before, report)
                return before
            report(f"ending what was there before: {wrong}")
        _end_all(folder, before, report)
        state = SandboxState(
            folder=folder,
            short=short_name(folder),
            boot=boot_id(),
            started=utc_iso((clock or SystemClock()).now()),
            code=code_version(),
            backend=chosen,
            why_local=why,
            keycloak=real,
            service=service,
            ports=choose_ports(before.ports if before is not None else {}),
        )
        state.urls = environment.urls(state.ports, service=service)
        store(state)
        if why:
            report(f"jobs run as local processes: {why}")
        try:
            Platform(state, report).start()
        except BaseException:
            with _undisturbed():
                _end_all(folder, state, lambda _: None)
            raise
        return state


def status(state: SandboxState) -> list[PartStatus]:
    """How each part is now. Nobody logs in anywhere for it."""
    if not state.parts:
        return []
    with ThreadPoolExecutor(len(state.parts)) as pool:
        return list(pool.map(_look, state.parts))


def down(folder: Path, report: Report, *, purge: bool = False) -> int:
    """End every process of the sandbox in ``folder``; idempotent. Returns how many there were.

    ``purge`` removes the folder too.

    Raises:
        SandboxError: a process cannot be ended, or the folder is no sandbox and is not to be removed.
    """
    if not folder.exists():
        return 0
    if not (folder / FILE).exists() and any(entry.name != ".lock" for entry in folder.iterdir()):
        raise SandboxError(f"{folder} holds no sandbox", hint="Name its folder with --dir or BBPWF_SANDBOX_DIR.")
    with _undisturbed(), exclusively(folder):
        try:
            state = load(folder)
        except SandboxError:
            if not purge:
                raise
            state = None  # what belongs to it is found without its notes
        count = _end_all(folder, state, report)
        if purge:
            shutil.rmtree(folder)
        return count


def _backend(asked: Literal["auto", "slurm", "local"]) -> tuple[Literal["slurm", "local"], str]:
    if asked == "local":
        return "local", "asked for"
    lacking = missing_for_slurm()
    if not lacking:
        return "slurm", ""
    what = f"{', '.join(lacking)} not found (`make setup` as root installs them)"
    if asked == "slurm":
        raise SandboxError(f"no real Slurm can run here: {what}")
    return "local", what


_NO_SERVICE, _DEAD_SERVICE, _OLD_SERVICE = "it had no service", "the service is dead", "the service's code has changed"
_SERVICE_ALONE = frozenset({_NO_SERVICE, _DEAD_SERVICE, _OLD_SERVICE})
"""What can be mended by starting the service: cluster and jobs do not notice."""


def _unfit(state: SandboxState, service: bool, backend: str, keycloak: bool) -> str:
    """Why what was started before cannot be gone on with as it is; empty if it can."""
    if state.stale():
        return "the machine was restarted"
    if not state.complete:
        return "it was not started to the end"
    if state.backend != backend:
        return f"jobs ran on {state.backend}"
    if state.keycloak != keycloak:
        return "its issuer was another"
    unwell = {each.part.name: each.state for each in status(state) if each.state != "healthy"}
    if unwell == {"service": "dead"}:
        return _DEAD_SERVICE if service else ""
    if unwell:
        return ", ".join(f"{name} is {how}" for name, how in unwell.items())
    if service and not state.service:
        return _NO_SERVICE
    return _OLD_SERVICE if service and state.code != code_version() else ""


def _start_service(state: SandboxState, report: Report) -> None:
    old = state.part("service")
    if old is not None:
        end([old.process], grace=_GRACE_S)
    state.code = code_version()
    Platform(state, report).start_service()


def _look(part: Part) -> PartStatus:
    if not part.process.alive():
        return PartStatus(part, "dead")
    well = (part.port is None or listener(part.port, [part.process])) and (not part.url or answers(part.url))
    return PartStatus(part, "healthy" if well else "unresponsive")


def _end_all(folder: Path, state: SandboxState | None, report: Report) -> int:
    """End what ``state`` lists, what descends from it, and whatever else carries the sandbox's marks."""
    names = {folder} | ({state.short} if state is not None else set())
    parts = [part for part in state.parts if part.process.alive()] if state is not None else []
    ended: set[ProcessId] = set(descendants([*belonging(*names), *(part.process for part in parts)]))
    if state is not None:
        _end_in_order(state, parts, report)
    with contextlib.suppress(TimeoutError):
        lfs.stop(Layout(folder).shared_disk)
    left: Sequence[ProcessId] = [process for process in ended if process.alive()]
    for _ in range(5):  # what is ended may have started something in the meantime
        late = set(descendants(belonging(*names)))
        ended |= late
        left = end({*left, *late}, grace=2.0)
        if not left and not belonging(*names):
            break
    else:
        numbers = ", ".join(str(process.pid) for process in left)
        raise SandboxError(f"processes of the sandbox do not end: {numbers}", where=str(folder))
    if state is not None:
        drop_short_name(state)
        state.parts, state.complete = [], False
        store(state)
    return len(ended)


def _end_in_order(state: SandboxState, parts: list[Part], report: Report) -> None:
    """The service first, so that it can put its affairs in order; then jobs; Slurm's keys of trust at the very last."""
    service = [part for part in parts if part.name == "service"]
    if service:
        report("the service")
        end([part.process for part in service], grace=_GRACE_S)
    if any(part.name == "slurmctld" for part in parts):
        report("jobs")
        _cancel_jobs(state)
    rest = [part for part in parts if part.name not in {"service", "munged"}]
    if rest:
        report(", ".join(part.name for part in rest))
    # those who log in under sshd live on without it
    sessions = descendants(part.process for part in rest if part.name == "sshd")
    end([part.process for part in rest], grace=_GRACE_S)
    for session in sessions:
        session.signal(signal.SIGTERM)
    wait_gone(sessions, within=2.0)
    end([part.process for part in parts if part.name == "munged"], grace=2.0)


def _cancel_jobs(state: SandboxState) -> None:
    folder = Layout(state.short).slurm
    conf = folder / "slurm.conf"
    slurm = Slurm(folder=folder, conf=conf, nodes=(), processes=(), env={"SLURM_CONF": str(conf)})
    slurm.end_jobs(within=8.0)


_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and the like while cleaning up: half a clean-up is what it would leave."""
    if threading.current_thread() is not threading.main_thread():  # others cannot, and are not interrupted
        yield
        return
    before = [(number, signal.signal(number, signal.SIG_IGN)) for number in _INTERRUPTS]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
