"""Small files through commands: what to run, and what its answer means. No I/O.

GNU coreutils from 8.22 on. Names are bytes that went through ``os.fsdecode``: any name a file can have survives.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from bbpwf.errors import BbpwfError, CommandFailed, NotFound
from bbpwf.transport.protocol import Completed, FileStat

_C = ("env", "LC_ALL=C")  # messages in English: they tell an absent file from one that may not be seen
_FEW = 2048
"""Characters of names that go into one command line."""
_ABSENT = (b"No such file or directory", b"Not a directory")


def stat_command(paths: Sequence[str]) -> tuple[list[str], bytes]:
    """The command, and its stdin, that looks at all of ``paths`` in one go; for few of them that is one program."""
    end = _separator(paths)
    look = ["stat", "-L", rf"--printf=%n{end}%s %.9Y %f{end}", "--"]
    if sum(len(path) for path in paths) <= _FEW:
        return [*_C, *look, *paths], b""
    return [*_C, "xargs", "-0", "-r", *look], b"".join(os.fsencode(path) + b"\0" for path in paths)


def _separator(paths: Sequence[str]) -> str:
    """What stands between a file's name and its facts: lines are cheaper to send than what no name can hold."""
    return r"\0" if any("\n" in path for path in paths) else r"\n"


def stat_answer(paths: Sequence[str], done: Completed, *, where: str) -> list[FileStat | None]:
    """One entry a path, in the order of ``paths``.

    Raises:
        CommandFailed: something else than absence kept a path from being looked at, or the answer was cut.
    """
    found: dict[bytes, FileStat] = {}
    fields = done.stdout.split(b"\0" if _separator(paths) == r"\0" else b"\n")
    try:
        for name, facts in zip(fields[:-1:2], fields[1::2], strict=True):
            size, mtime, mode = facts.split()
            found[name] = FileStat(int(size), float(mtime), stat.S_ISDIR(int(mode, 16)))
    except ValueError:
        raise _failed("stat answered something else than was asked for", done, where) from None
    complaints = [line for line in done.stderr.splitlines() if line.strip() and not line.endswith(_ABSENT)]
    if done.truncated or complaints or done.exit_code not in {0, 1, 123}:  # 123: xargs' word for "some failed"
        raise _failed("files could not be looked at", done, where)
    answers = [found.get(os.fsencode(path)) for path in paths]
    if None in answers and not done.stderr:
        raise _failed("stat left out files without saying why", done, where)
    return answers


def read_command(path: str, offset: int, limit: int) -> list[str]:
    """The command that prints at most ``limit`` bytes of a file from ``offset``."""
    return [
        *(*_C, "dd", f"if={path}", f"skip={offset}", f"count={limit}", "bs=128K", "status=none"),
        "iflag=skip_bytes,count_bytes,fullblock",
    ]


def read_answer(path: str, done: Completed, *, where: str) -> bytes:
    """The bytes. An offset past the end is no error.

    Raises:
        NotFound: there is no such file.
        CommandFailed: it is there but cannot be read.
    """
    if done.exit_code != 0:
        raise _file_error("read", path, done, where)
    return done.stdout


_WRITE = """
set -e
case $1 in */*) folder=${1%/*}/; mkdir -p -- "$folder" ;; *) folder=./ ;; esac
draft=$(mktemp -- "$folder.bbpwf.XXXXXXXXXX")
trap 'rm -f -- "$draft"' EXIT
cat >"$draft"
chmod -- "$2" "$draft"
mv -fT -- "$draft" "$1"
trap - EXIT
"""


def write_command(path: str, mode: int) -> list[str]:
    """The command that puts its stdin at ``path`` by renaming a finished file."""
    return [*_C, "bash", "-c", _WRITE, "bbpwf-write", path, f"{mode:o}"]


def write_answer(path: str, done: Completed, *, where: str) -> None:
    """Raises CommandFailed unless the file is in place."""
    if done.exit_code != 0:
        raise _file_error("write", path, done, where)


def follow_command(path: str, offset: int) -> list[str]:
    """The command that prints a growing file from ``offset`` on, until its own stdin ends."""
    return ["bash", "--noprofile", "--norc", "-c", _FOLLOW, "bbpwf-follow", path, str(offset + 1)]


# tail's own wait for a file that does not exist yet forgets where to start. The reader of stdin ends tail when the
# channel is closed: older ones notice only when they have something to write.
_FOLLOW = """
exec 7<&0
until [ -e "$1" ]; do
    IFS= read -r -t 0.2 -n 1 _ <&7
    [ $? -gt 128 ] || exit 0
done
{ IFS= read -r -t 9999999 -n 1 _ <&7; kill $$; } >/dev/null 2>&1 &
exec tail -c "+$2" -s 0.2 -f -- "$1" </dev/null 2>/dev/null 7<&-
"""


def _file_error(verb: str, path: str, done: Completed, where: str) -> BbpwfError:
    if verb == "read" and any(text in done.stderr for text in _ABSENT):
        return NotFound(f"there is no file {path}", where=where)
    return _failed(f"could not {verb} {path}", done, where)


def _failed(message: str, done: Completed, where: str) -> CommandFailed:
    said = done.err.strip()[-500:]
    return CommandFailed(
        f"{message}: {said}" if said else message, exit_code=done.exit_code, stderr=done.err[-2000:], where=where
    )
