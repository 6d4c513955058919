"""Explanations for people: why a job waits, how it ended, what it asked for, what was submitted, its last lines."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from bbpwf.cli.show import View, duration, moment, state_text

_LAST_LINES = 15


def explanation(explained: View) -> Text:
    """One task's explanation, as the service gives it."""
    task = explained["task"]
    text = Text.assemble((str(task["name"]), "bold"), "  ", state_text(task["state"]), "  ", (str(task["id"]), "dim"))
    job = explained["job"]
    if job is None:
        if task["reason"] and not explained["reasons"]:
            text.append(f"\n  {task['reason']}")
        for reason in explained["reasons"]:
            examples = ", ".join(reason["examples"]) + (", …" if reason["jobs"] > len(reason["examples"]) else "")
            jobs = "1 job" if reason["jobs"] == 1 else f"{reason['jobs']} jobs"
            text.append(f"\n  {jobs}: {reason['why']}")
            text.append(f"\n    {examples}", "dim")
        return text
    text.append(f"\n  {job['why']}")
    for attempt in job["attempts"]:
        _attempt(text, attempt)
    _block(text, "script", job["script"].rstrip().splitlines())
    _block(text, "last lines of its log", job["log_tail"].rstrip().splitlines()[-_LAST_LINES:])
    return text


def _attempt(text: Text, attempt: View) -> None:
    named = f" as {attempt['scheduler_id']}" if attempt["scheduler_id"] else ""
    text.append(f"\n  attempt {attempt['number']}{named}", "bold")
    asked = ", ".join(f"{name}={_plain(value)}" for name, value in attempt["asked"].items())
    text.append(f"\n    asked for  {asked or 'what the cluster gives by itself'}")
    if (record := attempt["exit"]) is not None:
        text.append(f"\n    used       {_used(record)}")
    if attempt["command"]:
        text.append(f"\n    submitted  {attempt['command']}", "dim")
    for change in attempt["history"]:
        why = f": {change['reason']}" if change["reason"] else ""
        text.append(f"\n    {moment(change['at'])}  {change['state']} ({change['witness']}){why}", "dim")


def _used(record: View) -> str:
    words = [f"{duration(record['started'], record['ended'])} of time"]
    if record["cpu_s"] is not None:
        words.append(f"{record['cpu_s']:.2f} s of CPU")
    if record["memory_mb"] is not None:
        words.append(f"{record['memory_mb']} MiB of memory")
    if record["node"]:
        words.append(f"on {record['node']}")
    return ", ".join(words) + f"; exit code {record['code']}"


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _block(text: Text, title: str, lines: list[str]) -> None:
    if lines:
        text.append(f"\n  {title}", "bold")
    for line in lines:
        text.append(f"\n    │ {line}", "dim")
