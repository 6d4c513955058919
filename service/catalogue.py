"""What can be launched, and whether a launch makes sense: asked of a short-lived process that imports task modules.

This process never does: a module of a user may hang, crash, or change whatever it is imported into. Answers are
remembered by the content of what was asked, attachments included.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bbpwf import errors
from bbpwf.clock import Clock
from bbpwf.cluster.runs import Owner, RunRecord, RunRequest
from bbpwf.errors import BbpwfError, InvalidInput
from bbpwf.settings import Settings
from bbpwf.states import RunState
from service.containment import Cell, Containment
from service.heads import head_env, head_request, open_up
from service.uploads import Uploads

ASK_LIMIT_S = 30.0
"""A process that has not answered by then is killed: a module that hangs on import is reported, not waited for."""
ASK_OUTPUT = 8 * 1024 * 1024
AT_ONCE = 2
"""Processes at once; more requests wait for one of them."""
LIST_FRESH_S = 60.0
"""The list of tasks is looked at anew after this, so that changed modules show."""
_REMEMBERED = 512


class Catalogue:
    """See the module. Calls block for as long as an import takes: use a worker thread."""

    def __init__(self, settings: Settings, uploads: Uploads, containment: Containment, clock: Clock) -> None:
        self._settings = settings
        self._uploads = uploads
        self._containment = containment
        self._clock = clock
        self._slots = threading.BoundedSemaphore(AT_ONCE)
        self._lock = threading.Lock()
        self._turns = [threading.Lock() for _ in range(16)]
        self._sound: OrderedDict[str, tuple[dict[str, str], OrderedDict[str, None]]] = OrderedDict()
        """By what else there is to a launch: its task's free parameters, and shapes of parameters found sound."""
        self._listed: tuple[float, dict[str, Any]] | None = None
        self._listing = threading.Lock()

    def validate(self, request: RunRequest) -> None:
        """Return if the launch makes sense: the task exists, its parameters and config are well-typed.

        Raises:
            UnknownTask, InvalidParameter, InvalidConfig, InvalidInput: what does not, and where.
        """
        of = _digest(request.model_dump(mode="json", include=_WHAT_COUNTS))
        if self._is_sound(of, request.workflow_params):
            return
        with self._turns[int(of[:2], 16) % len(self._turns)]:  # the first of many alike looks for all of them
            if self._is_sound(of, request.workflow_params):
                return
            free = self._look_at(request).get("free") or {}
            with self._lock:
                known = self._sound[of] = self._sound.get(of) or (free, OrderedDict())
                self._sound.move_to_end(of)
                known[1][_shape(request.workflow_params, known[0])] = None
                while len(known[1]) > _REMEMBERED:
                    known[1].popitem(last=False)
                while len(self._sound) > _REMEMBERED:
                    self._sound.popitem(last=False)

    def _is_sound(self, of: str, params: dict[str, Any]) -> bool:
        """Whether such a launch was found sound before, but for values that may be any of their kind."""
        with self._lock:
            known = self._sound.get(of)
            return known is not None and _shape(params, known[0]) in known[1]

    def main_task(self, module: str, attachments: Sequence[str]) -> str:
        """``module:Task`` for an attached module that is launched as a whole; ``attachments`` as a run records them.

        Raises:
            InvalidInput: it cannot be imported, or does not say which of its tasks is meant.
        """
        with self._unpacked(attachments) as (cell, attached):
            at = ["--path", str(attached)] if attached else []
            return str(self._ask(["main", *at, module], "", cell, attached)["name"])

    def _look_at(self, request: RunRequest) -> dict[str, Any]:
        with self._unpacked(request.attachments) as (cell, attachments):
            run = RunRecord(
                run_id="check", state=RunState.QUEUED, request=request, owner=Owner(sub="check"), created_at=0.0
            )
            question = head_request(run, self._settings, attachments).model_dump_json()
            return self._ask(["validate"], question, cell, attachments)

    @contextlib.contextmanager
    def _unpacked(self, recorded: Sequence[str]) -> Iterator[tuple[Cell, Path | None]]:
        """A cell, and the folder in it that has the attachments, if there are any."""
        with self._slots, self._containment.passing("check-") as cell:
            attachments = cell.folder / "attachments" if recorded else None
            if attachments is not None:
                self._uploads.copy_into(recorded, attachments)
                open_up(attachments)
            yield cell, attachments

    def tasks(self) -> dict[str, Any]:
        """``{"tasks": [...], "errors": [...]}``: what the instance offers, and modules that cannot be imported."""
        with self._listing:
            if self._listed is not None and self._clock.monotonic() - self._listed[0] < LIST_FRESH_S:
                return self._listed[1]
            with self._unpacked(()) as (cell, _):
                found = self._ask(["list", *self._paths(), *self._settings.service.task_modules], "", cell, None)
            self._listed = self._clock.monotonic(), found
            return found

    def task(self, name: str) -> dict[str, Any]:
        """One task by ``module:Task``, whether or not the instance's list has it. Raises UnknownTask."""
        for each in self.tasks().get("tasks", []):
            if each.get("name") == name:
                return dict(each)
        with self._unpacked(()) as (cell, _):
            return self._ask(["show", *self._paths(), name], "", cell, None)

    def _paths(self) -> list[str]:
        return [word for path in self._settings.service.workflows_path for word in ("--path", str(path))]

    def _ask(self, command: Sequence[str], question: str, cell: Cell, attachments: Path | None) -> dict[str, Any]:
        argv = [sys.executable, "-P", "-m", "bbpwf.workflow.catalogue", *command]
        code, out, err = _contained(argv, question.encode(), head_env(cell, attachments), cell)
        try:
            answer = json.loads(out)
        except ValueError:
            answer = None
        if code != 0 or not isinstance(answer, dict):
            last = err.decode(errors="replace").strip()[-2000:]
            raise InvalidInput(f"the task could not be looked at (code {code}): {last or 'it said nothing'}")
        if "error" in answer:
            raise _error(answer["error"])
        return answer


_WHAT_COUNTS = {"workflow_url", "workflow_engine_parameters", "attachments"}
_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _shape(params: dict[str, Any], free: dict[str, str]) -> str:
    """What two sets of parameters have in common that are equally sound: all but the values of free parameters."""
    return _digest([[name, *_of_kind(value, free.get(name))] for name, value in sorted(params.items())])


def _of_kind(value: Any, kind: str | None) -> tuple[Any, Any]:
    if kind is not None and isinstance(value, _KINDS[kind]) and isinstance(value, bool) == (kind == "boolean"):
        return "any", kind
    return "this", value


def _error(body: Any) -> BbpwfError:
    """The error that the process reports, if it is one that a caller can mend."""
    kind = getattr(errors, str(body.get("type", "")), InvalidInput)
    if not (isinstance(kind, type) and issubclass(kind, InvalidInput)):
        kind = InvalidInput
    return kind(str(body.get("message", "the launch makes no sense")), hint=str(body.get("hint", "")))


def _contained(argv: Sequence[str], question: bytes, env: dict[str, str], cell: Cell) -> tuple[int, bytes, bytes]:
    """Run a process of user code with limits; its exit code, and what it wrote to stdout and stderr.

    Raises:
        InvalidInput: it did not end in time.
    """
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        asked.write(question)
        asked.seek(0)
        process = subprocess.Popen(
            cell.limited(_LIMITS).command(argv),
            env=env,
            cwd=cell.work,
            stdin=asked,
            stdout=out,
            stderr=err,
            start_new_session=True,
            **cell.identity,
        )
        try:
            code = process.wait(ASK_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise InvalidInput(
                f"looking at the task took longer than {ASK_LIMIT_S:.0f} s",
                hint="Modules must not wait or compute when they are imported.",
            ) from None
        finally:
            with contextlib.suppress(ProcessLookupError):  # whatever it started goes with it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        err.seek(0)
        return code, out.read(ASK_OUTPUT), err.read(ASK_OUTPUT)


_LIMITS = {"CPU": int(ASK_LIMIT_S), "AS": 4 * 1024 * 1024 * 1024, "FSIZE": 2 * ASK_OUTPUT, "NPROC": 64}
