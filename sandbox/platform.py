"""Starting the whole platform on one machine. Ending it is :mod:`sandbox.lifecycle`'s business."""

from __future__ import annotations

import dataclasses
import secrets
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

from bbpwf.shell import exports
from sandbox import environment, lfs
from sandbox.double import save
from sandbox.layout import Layout, software_environment
from sandbox.parts import LISTENERS, Chain, Parts, Step
from sandbox.pids import ProcessId, identify, listener
from sandbox.process import Running, StartFailed, disown, free, free_ports, start
from sandbox.state import Part, SandboxError, SandboxState, store

Report = Callable[[str], None]
"""Hears, in a few words each, what was started."""


def choose_ports(before: Mapping[str, int]) -> dict[str, int]:
    """A port for each part that listens: the one it had before if that is free, so that links stay good."""
    kept = {name: port for name, port in before.items() if name in LISTENERS and free(port)}
    wanting = [name for name in LISTENERS if name not in kept]
    while True:
        found = dict(zip(wanting, free_ports(len(wanting)), strict=True))
        if not set(found.values()) & set(kept.values()):
            return {**kept, **found}


class Platform:
    """One start of a sandbox. ``state`` is filled and stored as parts come up."""

    def __init__(self, state: SandboxState, report: Report) -> None:
        self.state = state
        self._report = report
        self._layout = Layout(state.short)
        self._guard = threading.Lock()
        self._cancelled = threading.Event()

    def start(self) -> None:
        """Prepare the folder and start every part. On any exception, what was started still runs.

        Raises:
            SandboxError: a part did not start; names it and shows the end of its log.
        """
        state = self.state
        try:
            secret = self._prepare()
            parts = Parts(state)
            chains = parts.chains()
        except (OSError, ValueError) as error:
            raise SandboxError(f"the sandbox cannot be prepared: {error}", where=str(state.folder)) from error
        self._side_by_side(chains)
        if state.service:
            self._run(parts.service(secret))
        dead = [part.name for part in state.parts if not part.process.alive()]
        if dead:
            raise SandboxError(f"{', '.join(dead)} ended right after the start", where=str(self._layout.logs))
        state.complete = True
        store(state)

    def start_service(self) -> None:
        """Start the service alone, beside the parts that run: it picks up its unfinished runs.

        Raises:
            SandboxError: it did not start.
        """
        state = self.state
        state.service = True
        state.parts = [part for part in state.parts if part.name != "service"]
        state.urls = environment.urls(state.ports, service=True)
        save(self._layout.root / "env", exports(environment.client_env(state)))
        self._run(Parts(state).service(self._layout.client_secret.read_text().strip()))
        store(state)

    def _prepare(self) -> str:
        layout, state = self._layout, self.state
        for folder in (layout.logs, layout.service_state, layout.client_state, layout.data_root, layout.home("sim")):
            folder.mkdir(parents=True, exist_ok=True)
        # moto forgets everything when it ends, so what others remember of secrets and objects in it is void
        (layout.root / "provisioner" / "clusters.json").unlink(missing_ok=True)
        for name in ("files", "queue"):
            shutil.rmtree(lfs.state_folder(layout.shared_disk) / name, ignore_errors=True)
        if not layout.client_secret.exists():
            save(layout.client_secret, secrets.token_urlsafe(32) + "\n")
        secret = layout.client_secret.read_text().strip()
        software = software_environment()
        layout.software.unlink(missing_ok=True)
        layout.software.symlink_to(software)
        if not (software / "bin" / "python").exists():
            self._report("no software environment for the cluster: NEURON jobs will fail (`make software` builds it)")
        save(layout.root / "env", exports(environment.client_env(state)))
        save(layout.root / "env.service", exports(environment.service_env(state, secret)))
        return secret

    def _side_by_side(self, chains: Sequence[Chain]) -> None:
        pool = ThreadPoolExecutor(len(chains), thread_name_prefix="start")
        futures: list[Future[None]] = []
        try:
            futures = [pool.submit(self._run, chain) for chain in chains]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:  # an interrupt too: the other chains need not wait for what they have begun
            self._cancelled.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, chain: Chain) -> None:
        for step in chain.steps:
            if not self._cancelled.is_set():
                self._start(step)
        if not self._cancelled.is_set():
            chain.afterwards()

    def _start(self, step: Step) -> None:
        name, port = step.process.name, step.port
        started: list[ProcessId] = []

        def spawned(running: Running) -> None:
            found = identify(running.pid)
            if found is not None:
                started.append(found)
                self._note(step, found)

        def ready() -> bool:
            # a stranger who took the port in the meantime must not pass for our process
            return step.process.ready() and (port is None or listener(port, started))

        try:
            running = start(
                dataclasses.replace(step.process, ready=ready),
                spawned=spawned,
                wanted=lambda: not self._cancelled.is_set(),
            )
        except StartFailed as error:
            if self._cancelled.is_set():
                return
            taken = port is not None and not free(port)
            hint = f"Something else listens on port {port}: start again, another will be chosen." if taken else ""
            raise SandboxError(str(error), hint=hint) from error
        disown(running)
        self._report(f"{name} on port {port}" if port else name)

    def _note(self, step: Step, process: ProcessId) -> None:
        with self._guard:
            part = Part(name=step.process.name, process=process, log=step.process.log, port=step.port, url=step.url)
            self.state.parts = [*self.state.parts, part]
            store(self.state)
