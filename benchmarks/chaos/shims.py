"""Slurm commands on the head node that obey orders: each order is a file, taken by one call, which then misbehaves.

An order that was carried out lies in ``done``; that is how the storm counts what it really did.
"""

from __future__ import annotations

import shlex
from pathlib import Path

_TAKE = """#!/bin/bash
chaos={chaos}
what=
for order in "$chaos"/orders/{name}.*; do
    if mv "$order" "$chaos/done/" 2>/dev/null; then
        what=${{order##*.}}
        break
    fi
done
{plain}
cut() {{ # end the connection that this runs in, as a broken network would
    local pid=$$ name listener fields
    listener=$(<"$chaos/listener")
    while [ "$pid" -gt 1 ] && [ "$pid" != "$listener" ]; do
        read -r name <"/proc/$pid/comm" || return
        fields=$(<"/proc/$pid/stat")
        fields=(${{fields##*) }})
        case $name in sshd*) kill -9 "$pid" ;; esac
        pid=${{fields[1]}}
    done
}}
"""

_PLAIN = '[ -z "$what" ] && exec /usr/bin/{name} "$@"'
_SQUEUE_PLAIN = """
real() {{ # jobs that are hidden are in no answer of squeue, ever
    if [ -s "$chaos/hidden" ]; then
        local ids
        ids=$(paste -sd '|' "$chaos/hidden")
        /usr/bin/squeue "$@" | grep -vE $'^(\x1e[0-9a-f]+\x1e)'"($ids)([^0-9]|$)"
        return "${{PIPESTATUS[0]}}"
    fi
    /usr/bin/squeue "$@"
}}
[ -z "$what" ] && {{ real "$@"; exit; }}
"""

_SBATCH = """
late="sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
case $what in
    die-before) kill -9 $$ ;;
    die-after) /usr/bin/sbatch "$@" >/dev/null; kill -9 $$ ;;
    late-before) echo "$late" >&2; exit 1 ;;
    late-after) /usr/bin/sbatch "$@" >/dev/null; echo "$late" >&2; exit 1 ;;
    busy) echo "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)" >&2
        exit 1 ;;
    full) echo "sbatch: error: Batch job submission failed: Resource temporarily unavailable" >&2; exit 1 ;;
    mute) /usr/bin/sbatch "$@" >/dev/null; exit 0 ;;
    slow-before) sleep 2; exec /usr/bin/sbatch "$@" ;;
    slow-after) /usr/bin/sbatch "$@"; sleep 2; exit 0 ;;
    twice-first | twice-second) # the same job is there two times
        script=$(cat; echo .)
        first=$(printf %s "${script%.}" | /usr/bin/sbatch "$@") || exit 1
        second=$(printf %s "${script%.}" | /usr/bin/sbatch "$@") || second=$first
        [ $what = twice-first ] && echo "$first" || echo "$second"
        exit 0
        ;;
    hidden) # it will begin much later; the answer is lost, and squeue does not show it
        answer=$(/usr/bin/sbatch "$@" --begin=now+30) || exit 1
        echo "${answer%%;*}" >>"$chaos/hidden"
        echo "$late" >&2
        exit 1
        ;;
    chatty) echo "Welcome! 12345 jobs ran here today."; exec /usr/bin/sbatch "$@" ;;
    cut-before) cut; exec /usr/bin/sbatch "$@" ;;
    cut-after) /usr/bin/sbatch "$@"; code=$?; cut; exit $code ;;
esac
exit 1
"""

_SQUEUE = """
case $what in
    fail) echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1 ;;
    late) sleep 1; echo "slurm_load_jobs error: Socket timed out on send/recv operation" >&2; exit 1 ;;
    slow) sleep 3; real "$@"; exit ;;
    nothing) exit 0 ;;
    half) real "$@" | head -n 3; exit 0 ;;
    torn) out=$(real "$@"); printf '%s' "${out:0:${#out}*2/3}"; exit 0 ;;
    unknown) real "$@" | sed 's/RUNNING/HIBERNATING/; s/COMPLETED/DREAMING/'; exit 0 ;;
    cut) cut; exit 1 ;;
esac
exit 1
"""

_SCANCEL = """
case $what in
    fail) echo "scancel: error: Kill job error on job id 1: Socket timed out on send/recv operation" >&2; exit 1 ;;
    nothing) exit 0 ;;
    die-after) /usr/bin/scancel "$@"; kill -9 $$ ;;
    cut) cut; exec /usr/bin/scancel "$@" ;;
esac
exit 1
"""

_BODIES = {"sbatch": _SBATCH, "squeue": _SQUEUE, "scancel": _SCANCEL}

ORDERS: dict[str, tuple[str, ...]] = {
    "sbatch": (
        "die-before",
        "die-after",
        "late-before",
        "late-after",
        "busy",
        "full",
        "mute",
        "slow-before",
        "slow-after",
        "chatty",
        "cut-before",
        "cut-after",
        "twice-first",
        "twice-second",
        "hidden",
    ),
    "squeue": ("fail", "late", "slow", "nothing", "half", "torn", "unknown", "cut"),
    "scancel": ("fail", "nothing", "die-after", "cut"),
}
"""What each command can be told to do once."""


class Shims:
    """The misbehaving commands of one head node; ``folder`` is theirs, ``bin_folder`` leads the login's PATH."""

    def __init__(self, folder: Path, bin_folder: Path) -> None:
        self._folder = folder
        self._count = 0
        for name in ("orders", "done"):
            (folder / name).mkdir(parents=True)
        for name, body in _BODIES.items():
            shim = bin_folder / name
            plain = (_SQUEUE_PLAIN if name == "squeue" else _PLAIN).format(name=name)
            shim.write_text(_TAKE.format(chaos=shlex.quote(str(folder)), name=name, plain=plain) + body)
            shim.chmod(0o755)

    def listener(self, pid: int) -> None:
        """Which sshd accepts connections now: it is never among those that are cut."""
        (self._folder / "listener").write_text(str(pid))

    def order(self, command: str, what: str, *, urgent: bool = False) -> None:
        """Let the next call of a command go wrong so, after the orders given before; ``urgent`` ones go first."""
        self._count += 1
        turn = f"{0 if urgent else 1}{self._count:06d}"
        (self._folder / "orders" / f"{command}.{turn}.{what}").touch()

    def withdraw(self) -> None:
        """Forget orders that nobody took."""
        for order in (self._folder / "orders").iterdir():
            order.unlink(missing_ok=True)

    def carried_out(self) -> list[str]:
        """``command.what`` of every order that was taken."""
        names = [path.name.split(".") for path in (self._folder / "done").iterdir()]
        return [f"{command}.{what}" for command, _, what in names]
