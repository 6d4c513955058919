"""Luigi's RPC for callers who may not do everything: a run's head works on its own tasks, the dashboard looks.

A central scheduler believes whatever it is told. Where heads run code of users, ours asks for a pass with every call
(``Authorization: Basic``): the run's id and a code that only its service can make. A head's pass lets the calls
through that Luigi's worker makes, about this run's worker and tasks; nobody's lets anything through that is not about
tasks of somebody.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

KEY = "BBPWF_SCHEDULER_KEY"
"""Environment variable with the key of passes, for the scheduler alone; without it, anybody may do anything."""
DASHBOARD = "*"
"""Whoever may look at all runs, and change nothing."""

LOOKS = frozenset(
    {
        "dep_graph",
        "fetch_error",
        "get_running_task_resources",
        "get_task_progress_percentage",
        "get_task_status_message",
        "graph",
        "has_task_history",
        "inverse_dep_graph",
        "is_pause_enabled",
        "is_paused",
        "resource_list",
        "task_list",
        "task_search",
        "worker_list",
    }
)
"""Methods of Luigi 3.8's scheduler RPC that show and change nothing."""
OF_WORKERS = frozenset(
    {
        "add_scheduler_message_response",
        "add_task",
        "add_task_batcher",
        "add_tasks",
        "add_worker",
        "announce_scheduling_failure",
        "count_pending",
        "decrease_running_task_resources",
        "get_work",
        "ping",
        "report_task_statistics",
        "set_task_progress_percentage",
        "set_task_status_message",
    }
)
"""What Luigi 3.8's worker calls, and ``add_tasks``, which is ours."""


def worker_of(run_id: str) -> str:
    """The name of a run's worker."""
    return f"run {run_id}"


def mark_of(run_id: str) -> str:
    """What the ids of a run's tasks end with."""
    return f"@{run_id}"


def code(key: str, name: str) -> str:
    """What shows that a pass for ``name``, a run's id or :data:`DASHBOARD`, was made by who has the key."""
    return hmac.new(key.encode(), name.encode(), hashlib.sha256).hexdigest()[:40]


def url_with_pass(url: str, key: str, run_id: str) -> str:
    """``url`` of the scheduler with a run's pass in it, as Luigi's client takes it."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{run_id}:{code(key, run_id)}@{parts.netloc}").geturl()


def bearer(authorization: str, key: str) -> str | None:
    """Whose pass the header holds; ``None`` if it holds no good one."""
    kind, _, value = authorization.partition(" ")
    try:
        name, _, given = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return None
    good = kind.lower() == "basic" and name != "" and hmac.compare_digest(given.encode(), code(key, name).encode())
    return name if good else None


def allowed(name: str, method: str, arguments: Mapping[str, Any]) -> bool:
    """Whether the bearer of a pass for ``name`` may make this call."""
    if name == DASHBOARD:
        return method in LOOKS
    if method not in OF_WORKERS or arguments.get("assistant"):
        return False
    mark = mark_of(name)
    workers = _named(arguments, "worker") + list(arguments.get("owners") or [])
    tasks = _named(arguments, "task_id")
    for listed in ("deps", "new_deps", "current_tasks"):
        tasks += list(arguments.get(listed) or [])
    within = list(arguments.get("tasks") or [])  # calls of add_task that come with this one
    if not all(isinstance(each, dict) and "tasks" not in each and allowed(name, "add_task", each) for each in within):
        return False
    owned = all(each == worker_of(name) for each in workers) and all(_ends(each, mark) for each in tasks)
    return owned and bool(workers or tasks or within)


def _named(arguments: Mapping[str, Any], name: str) -> list[Any]:
    return [arguments[name]] if arguments.get(name) is not None else []


def _ends(task_id: Any, mark: str) -> bool:
    return isinstance(task_id, str) and task_id.endswith(mark)
