"""``python -m bbpwf.workflow.head [RUN_DIR]``: the process that executes one run's graph.

Reads ``request.json``, speaks to ``agent.sock``, writes ``outcome.json``, or where the request says. Holds no secret.
SIGTERM cancels the run.
When its standard input, a pipe that its parent holds, reaches its end, it ends at once and touches no job.

Without RUN_DIR it waits, with everything imported, for a line on its standard input that says what it is for: JSON with
``folder`` (RUN_DIR) and ``env`` (variables to set). Nothing of a user's was looked at until then. As long as it waits
there is a file ``waiting`` in its working folder: before, its folders may not be moved.
"""

from __future__ import annotations

import enum
import json
import logging
import os
import signal
import stat
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType

from bbpwf import faults, log
from bbpwf.cluster.client import AgentClient
from bbpwf.errors import BbpwfError, InvalidInput
from bbpwf.redact import Redactor
from bbpwf.workflow.patience import AgentGone
from bbpwf.workflow.request import WAITING, Failure, Outcome, parse_request, write_outcome
from bbpwf.workflow.runner import Cancellation, SchedulerGone, run_local

_log = logging.getLogger(__name__)


class Exit(enum.IntEnum):
    """What the head's exit code says."""

    COMPLETE = 0
    EXECUTOR_ERROR = 1
    SYSTEM_ERROR = 2
    INVALID_INPUT = 3
    START_AGAIN = 4
    """No outcome was written: the agent, Luigi's scheduler or the parent is gone. The jobs go on."""
    CANCELED = 5


_EXITS = {
    "COMPLETE": Exit.COMPLETE,
    "EXECUTOR_ERROR": Exit.EXECUTOR_ERROR,
    "SYSTEM_ERROR": Exit.SYSTEM_ERROR,
    "CANCELED": Exit.CANCELED,
}


def main(argv: list[str] | None = None) -> int:
    """Run the head for the folder named in ``argv``; answers its exit code."""
    arguments = (sys.argv[1:] if argv is None else argv) or _told()
    if not arguments:
        return Exit.START_AGAIN
    cancellation = Cancellation()

    def on_term(signum: int, frame: FrameType | None) -> None:
        del signum, frame
        cancellation.request()

    signal.signal(signal.SIGTERM, on_term)
    signal.signal(signal.SIGINT, on_term)
    faults.arm(os.environ.get(faults.VARIABLE, ""))
    run_id = Path(arguments[0]).name
    redactor = Redactor()
    log.configure(redactor, as_json=os.environ.get("BBPWF_LOG_JSON") == "true", always={"run_id": run_id})
    if len(arguments) != 1:
        _log.error("usage: python -m bbpwf.workflow.head [RUN_DIR]")
        return Exit.INVALID_INPUT
    _watch_parent()
    folder = Path(arguments[0])
    try:
        outcome, code, where = _run(folder, cancellation)
    except (AgentGone, SchedulerGone) as error:
        _log.error("the head ends, to be started again: %s", error)
        return Exit.START_AGAIN
    faults.point("head.outcome.before")
    write_outcome(folder / where, outcome.masked(redactor.mask))
    faults.point("head.outcome.after")
    _log.info("the run is %s %s", outcome.state, outcome.reason)
    return code


def _run(folder: Path, cancellation: Cancellation) -> tuple[Outcome, Exit, str]:
    where = "outcome.json"
    try:
        request = parse_request((folder / "request.json").read_bytes(), where="request.json")
        where = request.outcome
        socket = folder / "agent.sock"
        outcome = run_local(AgentClient(socket, request.run_id), request, socket_path=socket, cancellation=cancellation)
        return outcome, _EXITS[outcome.state], where
    except InvalidInput as error:
        _log.error("the run cannot start: %s", error)
        failure = Failure(task_id="", label=type(error).__name__, reason=error.message, log_tail=error.hint)
        return Outcome(state="EXECUTOR_ERROR", reason=str(error), failed=(failure,)), Exit.INVALID_INPUT, where
    except BbpwfError as error:
        _log.exception("the run failed")
        return Outcome(state="SYSTEM_ERROR", reason=str(error)), Exit.SYSTEM_ERROR, where
    except Exception as error:  # noqa: BLE001 the boundary: a defect must end the run with words, not with silence
        _log.exception("the head failed")
        reason = f"unexpected {type(error).__name__} in the head: {str(error)[:500]}; its log has the details"
        return Outcome(state="SYSTEM_ERROR", reason=reason), Exit.SYSTEM_ERROR, where


def _told() -> list[str]:
    """What this process is for, when its parent says so; nothing if that ends first."""
    Path(WAITING).touch()
    line = sys.stdin.readline()
    Path(WAITING).unlink(missing_ok=True)
    if not line.endswith("\n"):
        return []
    said = json.loads(line)
    os.environ.update(said["env"])
    tempfile.tempdir = None  # what was found out of the environment as it was
    return [said["folder"]]


def _watch_parent() -> None:
    """End when standard input does, if it is a pipe or socket: its other end is the parent's."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    _log.warning("the parent is gone: the head ends, jobs go on")
    os._exit(Exit.START_AGAIN)


if __name__ == "__main__":
    sys.exit(main())
