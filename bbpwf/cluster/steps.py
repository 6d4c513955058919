"""What lies in an allocation's folder, as text: from steps to lines, and from lines to facts. No I/O.

::

    <spool>/allocations/<key>/
        requests                     what the agent asks for
        steps                        which steps began, and how they ended
        alive                        the agent's sign of life
        closed, released             nothing begins here any more: so says the allocation, or the agent

``allocation.sh`` is what reads and writes them on the nodes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from bbpwf import shell
from bbpwf.cluster.backend import Submission
from bbpwf.cluster.jobs import Allocation

ORPHAN_S = 180
"""Seconds without a sign of life from the agent after which an allocation that runs nothing ends, whatever its own
patience: six intervals of the queue query that the sign comes with."""
_STEP_ID = re.compile(r"[^/]+/(\w+?)(?:_(\d+))?\Z")

HAND_OVER = """
cd {spool} || exit 1
put() {{ printf '%s' "$2" >"$1" || exit 1; }}
over() {{ [ -e "allocations/$1/closed" ] || [ -e "allocations/$1/released" ]; }}
hand() {{ # allocation, request: what is asked for after it closed, as seen before or after, it does not run
    if ! over "$1"; then
        printf '%s\\n' "$2" >>"allocations/$1/requests" || exit 1
        over "$1" || return
    fi
    printf '%s %s\\n' {nonce} "$1"
}}
"""
LOOK = """
cd "$1" || exit 1
while read -r kind name; do
    case $kind in
        A)
            echo "$2" >"allocations/$name/alive"
            [ -e "allocations/$name/released" ] && echo "R $name"
            echo "A $name"
            cat "allocations/$name/steps"
            ;;
        B) for each in "batches/$name"/lease.*; do [ -L "$each" ] && echo "L $name ${each##*.}"; done ;;
    esac
done
exit 0
"""
ASK = """
cd "$1" || exit 1
while read -r allocation request; do echo "$request" >>"allocations/$allocation/requests" || exit 1; done
exit 0
"""
CANCEL = """
cd "$1" || exit 1
while read -r allocation batch position; do
    if ln -s cancelled "batches/$batch/lease.$position" 2>/dev/null; then
        echo "E $batch $position CANCELLED ." >>"allocations/$allocation/steps" || exit 1
    else
        echo "C $batch $position ." >>"allocations/$allocation/requests" || exit 1
    fi
done
exit 0
"""


@cache
def _runner() -> str:
    return (files("bbpwf.cluster") / "allocation.sh").read_text()


def allocation_task(name: str) -> str:
    """What stands for a task's id in the job that holds the nodes."""
    return f"allocation {name}"


def allocation_script(folder: str, spool: str, allocation: Allocation) -> str:
    """The script of the job that holds the nodes."""
    names = {"A": folder, "SPOOL": spool, "MAX": str(allocation.max_steps)}
    names |= {"IDLE": str(max(1, round(allocation.idle_s))), "ORPHAN": str(ORPHAN_S)}
    settings = " ".join(f"{name}={shell.quote([value])}" for name, value in names.items())
    return f"{settings}\n{_runner()}"


def request_line(submission: Submission) -> str:
    """What asks an allocation to run a submission."""
    asked = submission.resources
    cpus = (asked.ntasks or 1) * (asked.cpus_per_task or 1)
    limit = 0 if asked.time_limit is None else max(1, round(asked.time_limit.total_seconds()))
    return f"S {submission.batch_id} {len(submission.scripts)} {cpus} {limit} {submission.throttle} ."


def step_of(scheduler_id: str) -> tuple[str, int] | None:
    """Submission and element of a step's scheduler id; ``None`` for the id of a job."""
    match = _STEP_ID.match(scheduler_id)
    return None if match is None else (match[1], int(match[2] or 0))


@dataclass
class Steps:
    """What an allocation's file of steps says: which began, and how those ended that are over."""

    began: set[tuple[str, int]] = field(default_factory=set)
    ended: dict[tuple[str, int], str] = field(default_factory=dict)

    def read(self, line: str) -> None:
        """Take one line in; one that is not whole says nothing. Of two ends, the first is true."""
        match line.split(" "):
            case ["S", batch_id, position, "."] if position.isdigit():
                self.began.add((batch_id, int(position)))
            case ["E", batch_id, position, word, "."] if position.isdigit():
                self.ended.setdefault((batch_id, int(position)), word)
            case _:
                pass


@dataclass
class Seen:
    """What lies in the spool: each allocation's steps, the leases taken, and the allocations that were released."""

    steps: dict[str, Steps] = field(default_factory=dict)
    leases: set[tuple[str, int]] = field(default_factory=set)
    released: set[str] = field(default_factory=set)


def read_look(text: str) -> Seen:
    """The answer of a look into the spool."""
    seen = Seen()
    steps = Steps()
    for line in text.splitlines():
        match line.split(" "):
            case ["A", key]:
                steps = seen.steps.setdefault(key, Steps())
            case ["R", key]:
                seen.released.add(key)
            case ["L", batch_id, position] if position.isdigit():
                seen.leases.add((batch_id, int(position)))
            case _:
                steps.read(line)
    return seen
