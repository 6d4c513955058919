"""Who may ask Luigi's scheduler what."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from bbpwf.workflow import guarded
from bbpwf.workflow.guarded import DASHBOARD, allowed, bearer, code, url_with_pass

KEY = "a key of nobody else"


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def test_a_pass_is_good_for_one_name_and_one_key() -> None:
    assert bearer(basic("r1", code(KEY, "r1")), KEY) == "r1"
    assert url_with_pass("http://127.0.0.1:8082", KEY, "r1") == f"http://r1:{code(KEY, 'r1')}@127.0.0.1:8082"
    for wrong in (
        "",
        "Basic",
        "Basic %%%",
        basic("r2", code(KEY, "r1")),
        basic("r1", code("another key", "r1")),
        basic("r1", ""),
        basic("", code(KEY, "")),
        basic(DASHBOARD, code(KEY, "r1")),
        "Bearer " + basic("r1", code(KEY, "r1")).partition(" ")[2],
    ):
        assert bearer(wrong, KEY) is None, wrong


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("add_task", {"worker": "run r1", "task_id": "T_1@r1", "deps": ["U_2@r1"], "new_deps": []}),
        ("add_task", {"worker": "run r1", "task_id": "T_1@r1", "deps": None}),
        ("get_work", {"worker": "run r1", "assistant": False, "current_tasks": ["T_1@r1"]}),
        ("get_work", {"worker": "run r1", "tasks": [{"worker": "run r1", "task_id": "T_1@r1"}]}),
        ("add_tasks", {"tasks": [{"worker": "run r1", "task_id": "T_1@r1", "deps": ["U_2@r1"]}]}),
        ("ping", {"worker": "run r1"}),
        ("set_task_status_message", {"task_id": "T_1@r1", "status_message": "x"}),
        ("announce_scheduling_failure", {"task_name": "T", "owners": [], "worker": "run r1"}),
    ],
)
def test_a_run_works_on_its_own_tasks(method: str, arguments: dict[str, Any]) -> None:
    assert allowed("r1", method, arguments)
    assert not allowed("r2", method, arguments)
    assert not allowed(DASHBOARD, method, arguments)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("add_task", {"worker": "run r1", "task_id": "T_1@r2"}),
        ("add_task", {"worker": "run r1", "task_id": "T_1@r1", "deps": ["U_2@r2"]}),
        ("add_task", {"worker": "run r2", "task_id": "T_1@r1"}),
        ("add_task", {"worker": "run r1", "task_id": ["T_1@r1"]}),
        ("get_work", {"worker": "run r1", "assistant": True}),
        ("get_work", {"worker": "run r1", "tasks": [{"worker": "run r1", "task_id": "T_1@r2"}]}),
        ("add_tasks", {"tasks": [{"worker": "run r1", "task_id": "T@r1"}, {"worker": "run r2", "task_id": "T@r1"}]}),
        ("add_tasks", {"tasks": [{"worker": "run r1", "task_id": "T@r1", "deps": ["U@r2"]}]}),
        ("add_tasks", {"tasks": [{"worker": "run r1", "task_id": "T@r1", "assistant": True}]}),
        ("add_tasks", {"tasks": [{"worker": "run r1", "task_id": "T@r1", "tasks": [{}]}]}),
        ("add_tasks", {"tasks": ["T@r1"]}),
        ("add_tasks", {"tasks": {"worker": "run r1"}}),
        ("add_tasks", {"tasks": []}),
        ("get_work", {"worker": "run r2"}),
        ("ping", {}),
        ("ping", {"worker": "run r2"}),
        ("disable_worker", {"worker": "run r1"}),
        ("prune", {"worker": "run r1"}),
        ("task_list", {}),
        ("task_list", {"worker": "run r1"}),
        ("set_worker_processes", {"worker": "run r1", "n": 1000}),
        ("update_resources", {"worker": 3}),
        ("__init__", {"worker": "run r1"}),
    ],
)
def test_and_on_nothing_else(method: str, arguments: dict[str, Any]) -> None:
    assert not allowed("r1", method, arguments)


def test_the_dashboard_only_looks() -> None:
    assert allowed(DASHBOARD, "task_list", {})
    assert not (guarded.LOOKS & guarded.OF_WORKERS)
    for method in (*guarded.OF_WORKERS, "pause", "forgive_failures", "re_enable_task", "mark_as_done"):
        assert not allowed(DASHBOARD, method, {"worker": "*", "task_id": "x@*"})
