"""What lies on the cluster's disk for jobs that its queue no longer runs, or must not: exit records, logs, cancels.

One round trip each, for all jobs that are asked about.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bbpwf.cluster.ledger import Live
from bbpwf.cluster.spool import Ended, parse_event
from bbpwf.transport.protocol import Transport

Place = tuple[str, int]
"""A job's submission and its position there."""

MOST_LOGS = 200
"""Logs that are looked into in one round trip; others have their turn at the next."""
_TAIL_BYTES = 2048
_RECORDS = 'cd "$1" || exit 0; while IFS= read -r d; do cat "$d"/exit.* 2>/dev/null; done; exit 0'
_FORBID = 'cd "$1" || exit 0; while read -r batch i; do : >"batches/$batch/cancel.$i"; done 2>/dev/null; exit 0'
_LOGS = """
cd "$1" || exit 0
while read -r batch i; do
    printf '\\n\\036 %s %s\\n' "$batch" "$i"
    tail -c "$2" "batches/$batch/log.$i" 2>/dev/null | grep '^slurmstepd'
done
exit 0
"""


def place(job: Live) -> Place:
    """Where a job is."""
    return job.batch_id, job.position


def exit_records(transport: Transport, spool: str, jobs: Sequence[Live]) -> dict[Place, Ended]:
    """The newest exit record of each job that has one."""
    folders = sorted({f"batches/{job.batch_id}" for job in jobs})
    wanted = {place(job) for job in jobs}
    stdin = "".join(f"{folder}\n" for folder in folders).encode()
    done = transport.run(["bash", "-c", _RECORDS, "records", spool], stdin=stdin)
    found: dict[Place, Ended] = {}
    for line in done.out.split("\n"):
        event = parse_event(line)
        if isinstance(event, Ended) and (event.batch_id, event.position) in wanted:
            present = found.get((event.batch_id, event.position))
            if present is None or event.record.restart >= present.record.restart:
                found[event.batch_id, event.position] = event
    return found


def forbid(transport: Transport, spool: str, jobs: Iterable[Live]) -> None:
    """Let none of these begin any more, whatever queue it may still come from: see wrapper.sh."""
    stdin = "".join(f"{job.batch_id} {job.position}\n" for job in jobs).encode()
    transport.run(["bash", "-c", _FORBID, "forbid", spool], stdin=stdin)


def slurm_in_logs(transport: Transport, spool: str, jobs: Iterable[Live]) -> dict[Place, str]:
    """What Slurm itself wrote at the end of these jobs' logs, of as many as :data:`MOST_LOGS`."""
    asked = list(jobs)[:MOST_LOGS]
    if not asked:
        return {}
    stdin = "".join(f"{job.batch_id} {job.position}\n" for job in asked).encode()
    done = transport.run(["bash", "-c", _LOGS, "logs", spool, str(_TAIL_BYTES)], stdin=stdin)
    found: dict[Place, str] = {}
    for part in done.out.split("\n\x1e ")[1:]:
        head, _, text = part.partition("\n")
        batch_id, _, position = head.partition(" ")
        if position.isdigit():
            found[batch_id, int(position)] = text
    return found
