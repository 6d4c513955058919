"""What bbpwf uses of Luigi's inside. A failure here means: read Luigi's changes before you touch the seam."""

from __future__ import annotations

import inspect
from typing import Any

import luigi
from luigi import server, worker
from luigi.configuration.cfg_parser import LuigiConfigParser
from luigi.rpc import RemoteScheduler
from luigi.scheduler import RPC_METHODS, Scheduler, SimpleTaskState
from luigi.task_register import Register

from bbpwf.workflow import process
from bbpwf.workflow.scheduler import RunScheduler


def _parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def _source(function: Any) -> str:
    return inspect.getsource(function)


def test_the_version_is_one_that_was_read() -> None:
    assert luigi.__version__.startswith("3.8.")


def test_the_worker_has_the_methods_that_are_overridden() -> None:
    wanted = {
        "add": ["self", "task", "multiprocess", "processes"],
        "_add": ["self", "task", "is_complete"],
        "_add_task": ["self", "args", "kwargs"],
        "_validate_task": ["self", "task"],
        "_create_task_process": ["self", "task"],
        "_run_task": ["self", "task_id"],
        "_handle_next_task": ["self"],
        "_purge_children": ["self"],
        "_log_complete_error": ["self", "task", "tb"],
        "_log_dependency_error": ["self", "task", "tb"],
        "__exit__": ["self", "type", "value", "traceback"],
        "set_worker_processes": ["self", "n"],
        "__init__": ["self", "scheduler", "worker_id", "worker_processes", "assistant", "kwargs"],
    }
    assert {name: _parameters(getattr(worker.Worker, name)) for name in wanted} == wanted
    assert _parameters(worker.check_complete) == ["task", "out_queue", "completion_cache"]


def test_the_worker_has_the_attributes_that_are_used() -> None:
    made = worker.Worker(scheduler=Scheduler(), worker_id="w", no_install_shutdown_handler=True)
    try:
        for name in ("_running_tasks", "_scheduled_tasks", "_task_result_queue", "_first_task", "_config", "_id"):
            assert hasattr(made, name), name
        for name in (
            *("task_process_context", "timeout", "check_unfulfilled_deps", "check_complete_on_run"),
            *("force_multiprocessing", "keep_alive", "no_install_shutdown_handler", "wait_interval"),
        ):
            assert hasattr(made._config, name), name
        assert made._task_completion_cache is None
    finally:
        made._task_result_queue.close()


def test_a_process_object_is_used_as_ours_is_shaped() -> None:
    run = _source(worker.Worker._run_task)
    assert "self._create_task_process(task)" in run
    assert "task_process.use_multiprocessing" in run
    assert "task_process.start()" in run
    assert "task_process.run()" in run
    handle = _source(worker.Worker._handle_next_task)
    assert "task_id, status, expl, missing, new_requirements = self._task_result_queue.get(timeout=" in handle
    assert "except Queue.Empty:" in handle
    assert "self._purge_children()" in handle
    assert "self._running_tasks.pop(task_id)" in handle
    assert "task.is_alive()" in _source(worker.Worker.__exit__)
    assert "task.terminate()" in _source(worker.Worker.__exit__)
    loop = _source(worker.Worker.run)
    assert "while len(self._running_tasks) >= self.worker_processes > 0:" in loop
    used: tuple[str, ...] = (
        "task",
        "status_reporter",
        "use_multiprocessing",
        "timeout_time",
        "worker_timeout",
        "exitcode",
    )
    used = (*used, "run", "start", "is_alive", "terminate")
    held = process.HeldProcess(None, None)  # type: ignore[arg-type]  # its shape is looked at, nothing more
    for name in used:
        assert hasattr(held, name), name
        assert hasattr(process.JobProcess, name) or f"self.{name} =" in _source(process.JobProcess.__init__), name


def test_a_forked_process_takes_what_it_is_given() -> None:
    assert _parameters(worker.TaskProcess.__init__) == [
        *("self", "task", "worker_id", "result_queue", "status_reporter", "use_multiprocessing", "worker_timeout"),
        *("check_unfulfilled_deps", "check_complete_on_run", "task_completion_cache"),
    ]
    assert _parameters(worker.ContextManagedTaskProcess.__init__) == ["self", "context", "args", "kwargs"]
    assert worker.TaskProcess.forward_reporter_attributes == {
        "update_tracking_url": "set_tracking_url",
        "update_status_message": "set_status_message",
        "update_progress_percentage": "set_progress_percentage",
        "decrease_running_resources": "decrease_running_resources",
        "scheduler_messages": "scheduler_messages",
    }
    assert _parameters(worker.TaskStatusReporter.__init__) == [
        *("self", "scheduler", "task_id", "worker_id", "scheduler_messages"),
    ]
    put = "self.result_queue.put((self.task.task_id, status, expl, missing, new_deps))"
    assert put in _source(worker.TaskProcess.run)


def test_every_call_with_a_task_id_is_translated_for_a_shared_scheduler() -> None:
    with_ids = {
        name
        for name, method in RPC_METHODS.items()
        if {"task_id", "deps", "current_tasks"} & set(_parameters(getattr(Scheduler, name)))
    }
    asked_by_workers = with_ids - {
        *("dep_graph", "inverse_dep_graph", "fetch_error", "re_enable_task", "forgive_failures", "mark_as_done"),
        *("get_scheduler_message_response", "get_task_status_message", "get_task_progress_percentage"),
        *("get_running_task_resources",),
    }
    assert asked_by_workers <= set(vars(RunScheduler)), "the dashboard asks the others, with the ids it was shown"
    assert asked_by_workers >= {"add_task", "get_work", "set_task_status_message"}
    assert hasattr(RemoteScheduler, "ping")


def test_the_scheduler_is_made_and_changed_where_ours_steps_in() -> None:
    assert "scheduler = Scheduler()" in _source(server.run)
    assert "self._state = SimpleTaskState(self._config.state_path)" in _source(Scheduler.__init__)
    assert "self._make_task = functools.partial(Task" in _source(Scheduler.__init__)
    used = {
        "get_task": ["self", "task_id", "default", "setdefault"],
        "set_status": ["self", "task", "new_status", "config"],
        "inactivate_tasks": ["self", "delete_tasks"],
        "inactivate_workers": ["self", "delete_workers"],
        "_remove_workers_from_tasks": ["self", "workers", "remove_stakeholders"],
        "get_batch_running_tasks": ["self", "batch_id"],
    }
    assert {name: _parameters(getattr(SimpleTaskState, name)) for name in used} == used
    assert _parameters(Scheduler.get_work) == [*("self", "host", "assistant", "current_tasks", "worker", "kwargs")]
    assert _parameters(Scheduler._update_priority) == ["self", "task", "prio", "worker"]


def test_configuration_and_registry_are_where_they_are_looked_for() -> None:
    assert isinstance(LuigiConfigParser._config_paths, list)
    assert hasattr(LuigiConfigParser, "_instance")
    assert "cls._instance" in _source(LuigiConfigParser.instance)
    assert isinstance(Register._reg, list)
    assert callable(Register.clear_instance_cache)
