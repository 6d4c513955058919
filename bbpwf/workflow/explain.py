"""Why a job failed, in words, with the end of its log."""

from __future__ import annotations

from collections.abc import Sequence

from bbpwf.cluster.api import RunAgent
from bbpwf.cluster.jobs import JobView
from bbpwf.errors import BbpwfError
from bbpwf.workflow.request import LOG_TAIL_CHARS, Failure

QUOTED_LOGS = 20
"""Logs that are read for one failed task."""

TAIL_BYTES = 4096


def failures(agent: RunAgent, views: Sequence[JobView]) -> list[Failure]:
    """What to tell of these jobs; the logs of the first few are quoted. Never raises for a log it cannot read."""
    ordered = sorted(views, key=lambda view: (view.index is None, view.index or 0))
    tails = log_tails(agent, ordered[:QUOTED_LOGS])
    return [
        Failure(
            task_id=view.task_id,
            label=view.label,
            exit_code=view.exit.code if view.exit else None,
            reason=_reason(view),
            log_tail=tails.get(view.key, ""),
        )
        for view in ordered
    ]


def log_tails(agent: RunAgent, views: Sequence[JobView]) -> dict[str, str]:
    """The last lines of these jobs' logs, by key; a log that cannot be read is left out."""
    tails: dict[str, str] = {}
    for cluster in {view.cluster for view in views}:
        here = [view for view in views if view.cluster == cluster and view.stdout]
        try:
            stats = agent.stat([view.stdout for view in here], cluster=cluster)
            for view, stat in zip(here, stats, strict=True):
                if stat is not None and stat.size:
                    offset = max(0, stat.size - TAIL_BYTES)
                    data = agent.read(view.stdout, cluster=cluster, offset=offset, limit=TAIL_BYTES)
                    tails[view.key] = _tail(data, cut=offset > 0)
        except BbpwfError:  # the failure itself is what matters; its log is still on the cluster
            continue
    return tails


def sentence(failure: Failure) -> str:
    """``label: reason``, and the end of the log below it."""
    text = f"{failure.label or failure.task_id}: {failure.reason}"
    return f"{text}\n{failure.log_tail}" if failure.log_tail else text


def summary(total: int, found: Sequence[Failure], count: int) -> str:
    """What Luigi, the run's report and its log say of a failed task."""
    if total == 1 and len(found) == 1:
        return sentence(found[0])
    first = "\n".join(sentence(each) for each in found[:5])
    more = f"\n… and {count - 5} more" if count > 5 else ""
    return f"{count} of {total} jobs failed:\n{first}{more}"


def _reason(view: JobView) -> str:
    why = view.reason or (f"exit code {view.exit.code}" if view.exit else f"ended {view.state}")
    return f"{why} (job {view.scheduler_id})" if view.scheduler_id else why


def _tail(data: bytes, *, cut: bool) -> str:
    lines = data.decode(errors="replace").splitlines()
    if cut and len(lines) > 1:
        lines = lines[1:]
    return "\n".join(lines[-40:])[-LOG_TAIL_CHARS:]
