"""``bbpwf launch``: a task graph for the project's service."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bbpwf import settings
from bbpwf.cli import show
from bbpwf.cli.client import connect
from bbpwf.cli.exits import OK, exit_code_of_run
from bbpwf.cli.follow import Follower, conclude
from bbpwf.clock import SystemClock
from bbpwf.errors import InvalidInput, UnsafeUpload
from bbpwf.states import RunState

MAX_FILES = 500


def launch_there(
    module: str,
    task: str,
    params: dict[str, str],
    *,
    config: Path | None,
    attach: Sequence[Path],
    tags: Sequence[str],
    follow: bool,
    idempotency_key: str,
    json_output: bool,
) -> int:
    """Launch, and follow if asked; the exit code."""
    files = attachments(attach)
    if module.endswith(".py"):
        path = Path(module)
        files.setdefault(path.name, path)
        module = path.stem
    engine: dict[str, str] = {}
    if config is not None:
        files[config.name] = config
        engine["config"] = config.name
    fields = {
        "workflow_type": "LUIGI",
        "workflow_type_version": "3.8",
        "workflow_url": f"{module}:{task}",
        "workflow_params": json.dumps(params),
        "workflow_engine_parameters": json.dumps(engine),
        "tags": json.dumps(dict(_tag(each) for each in tags)),
    }
    client = connect(settings.load())
    content = [(name, path.read_bytes()) for name, path in files.items()]
    run_id = client.launch(fields, content, idempotency_key=idempotency_key)
    if not follow:
        if json_output:
            show.print_json({"run_id": run_id})
        else:
            show.console().print(run_id)
        return OK
    run = Follower(lambda: (client.run(run_id), client.tasks(run_id)), SystemClock(), quiet=json_output).until_end()
    conclude(run, json_output=json_output)
    return exit_code_of_run(RunState(run["state"]))


def attachments(paths: Sequence[Path]) -> dict[str, Path]:
    """Files by the names they are sent under: a file by its own name, a folder's files by their place in it.

    Raises:
        UnsafeUpload: too many files.
    """
    found: dict[str, Path] = {}
    for path in paths:
        whole = path.absolute()
        if path.is_dir():
            inside = sorted(p for p in whole.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
            found.update({p.relative_to(whole.parent).as_posix(): p for p in inside})
        else:
            found[whole.name] = whole
        if len(found) > MAX_FILES:
            raise UnsafeUpload(f"more than {MAX_FILES} files are to be sent along", where=str(path))
    return found


def _tag(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidInput(f"the tag {text!r} is not NAME=VALUE")
    return name, value
