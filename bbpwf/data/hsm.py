"""Lustre HSM commands as pure pairs: build what to run, parse what it said. No I/O.

Facts are from Lustre 2.15.8 and its head (``lustre/utils/lfs.c``); the words of both generations are accepted.
File names are anybody's: every list travels NUL-separated or quoted, and answers are matched against the names
that were asked for, never split at what looks like a separator.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bbpwf.errors import InvalidInput
from bbpwf.shell import quote

BATCH = 50
"""Files in one HSM request. The client refuses more than 52 (E2BIG): a request must fit 5120/3 bytes."""

NO_PRIVILEGE = 77
"""Exit code of :func:`archive_script` when sudo refused it; nothing was requested."""

_EXISTS, _DIRTY, _RELEASED, _ARCHIVED, _NO_RELEASE, _NO_ARCHIVE, _LOST = 1, 2, 4, 8, 0x10, 0x20, 0x40

# after "<path>: "; words are for people, the mask is what counts
_STATE = re.compile(rb"\(0x(?P<mask>[0-9a-fA-F]+)\)[ a-z_]*(?:, archive_id: *(?P<archive>\d+))?[ \t\r]*(?:\n|\Z)")
_ACTION = re.compile(rb"(?:(?P<noop>NOOP)|(?P<verb>[A-Z]+) (?P<phase>[a-z]+) *(?:\([^()\n]*\))?)[ \t\r]*(?:\n|\Z)")
# from the first line that looks so to the end: before it may stand a login's banner, and names may hold anything
_DIGEST = re.compile(rb"(?:\A|\n)([0-9a-f]{64}) [ *](/.*)\Z", re.DOTALL)
_STAT = re.compile(rb"(?:\A|\n)([0-9a-f]+) (\d+) (-?\d+\.\d+) (/.*)\Z", re.DOTALL)
_REPORT = re.compile(r"^bbpwf-archive: file (\d+): exit (\d+): (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class HsmState:
    """The HSM flags of one file, from its mask."""

    mask: int
    archive_id: int = 0

    @property
    def archived(self) -> bool:
        """A copy was completed at some time; it may be old or gone: see :attr:`current`."""
        return bool(self.mask & _ARCHIVED)

    @property
    def dirty(self) -> bool:
        """The file changed since."""
        return bool(self.mask & _DIRTY)

    @property
    def lost(self) -> bool:
        """The copy is known to be gone."""
        return bool(self.mask & _LOST)

    @property
    def released(self) -> bool:
        """Only the archive holds the data; reading the file brings it back."""
        return bool(self.mask & _RELEASED)

    @property
    def no_archive(self) -> bool:
        """The file is marked never to be archived."""
        return bool(self.mask & _NO_ARCHIVE)

    @property
    def current(self) -> bool:
        """The archive holds the file as it is now, as far as Lustre knows. ``exists`` alone is not enough."""
        return archived(self.mask)

    def __str__(self) -> str:
        words = (
            (_RELEASED, "released"),
            (_EXISTS, "exists"),
            (_DIRTY, "dirty"),
            (_ARCHIVED, "archived"),
            (_NO_RELEASE, "never released"),
            (_NO_ARCHIVE, "never archived"),
            (_LOST, "lost"),
        )
        return ", ".join(word for bit, word in words if self.mask & bit) or "not in the archive"


@dataclass(frozen=True)
class HsmAction:
    """The request under way for one file: ``verb`` is empty when there is none, which says nothing of success."""

    verb: str = ""
    phase: str = ""

    @property
    def idle(self) -> bool:
        """Nothing is under way: never asked, done, or failed. Only the state tells which."""
        return not self.verb


def archived(mask: int) -> bool:
    """The rule: in the archive and current ⇔ ARCHIVED is set, and neither DIRTY nor LOST is."""
    return mask & (_ARCHIVED | _DIRTY | _LOST) == _ARCHIVED


def check_path(path: str) -> str:
    """``path``, if it can be an archived file's: absolute, normal, without NUL, and UTF-8 as object keys must be.

    Raises:
        InvalidInput: it cannot.
    """
    problem = ""
    if not path.startswith("/"):
        problem = "is not absolute"
    elif "\0" in path:
        problem = "contains a NUL byte"
    elif path == "/" or path != "/" + "/".join(part for part in path.split("/") if part not in ("", ".", "..")):
        problem = "is not normal: it has an empty, '.' or '..' component"
    else:
        try:
            path.encode()
        except UnicodeEncodeError:
            problem = "is not UTF-8"
    if problem:
        raise InvalidInput(f"the path {path!r} {problem}")
    return path


def nul_separated(paths: Sequence[str]) -> bytes:
    """The list as ``xargs -0`` and ``sha256sum -z`` speak it."""
    return b"".join(check_path(path).encode() + b"\0" for path in paths)


def hsm_state_argv(paths: Sequence[str] = ()) -> list[str]:
    """Ask for the states of ``paths``; without any, of the NUL-separated list on stdin, in batches."""
    return _look_argv("hsm_state", paths)


def hsm_action_argv(paths: Sequence[str] = ()) -> list[str]:
    """Ask for the requests under way for ``paths``; without any, for the NUL-separated list on stdin."""
    return _look_argv("hsm_action", paths)


def _look_argv(verb: str, paths: Sequence[str]) -> list[str]:
    # lfs takes "--" for a file name, so absolute paths are what keeps a name from being an option
    if paths:
        return ["lfs", verb, *(check_path(path) for path in paths)]
    return ["xargs", "-0", "-r", "-n", str(BATCH), "lfs", verb]


def parse_hsm_state(stdout: bytes, paths: Sequence[str]) -> dict[str, HsmState]:
    """The answer to :func:`hsm_state_argv` for ``paths``, in the order that they were asked.

    A path that was not answered is absent: 2.15 stops at the first file that fails, newer versions leave it
    out. Only after exit code 0, or for a single path, is an answer beyond doubt: with names made for it, one
    file's line could pose as its neighbour's.
    """
    return {
        path: HsmState(int(found["mask"], 16), int(found["archive"] or 0))
        for path, found in _answers(stdout, paths, _STATE)
    }


def parse_hsm_action(stdout: bytes, paths: Sequence[str]) -> dict[str, HsmAction]:
    """The answer to :func:`hsm_action_argv` for ``paths``; as :func:`parse_hsm_state` otherwise."""
    return {
        path: HsmAction() if found["noop"] else HsmAction(found["verb"].decode(), found["phase"].decode())
        for path, found in _answers(stdout, paths, _ACTION)
    }


def _answers(stdout: bytes, paths: Sequence[str], tail: re.Pattern[bytes]) -> list[tuple[str, re.Match[bytes]]]:
    answers = []
    at = 0
    for path in paths:
        head = path.encode() + b": "
        start = at
        while (start := stdout.find(head, start)) >= 0:  # a login's banner may stand before the answer
            found = tail.match(stdout, start + len(head)) if start == at or stdout[start - 1 : start] == b"\n" else None
            if found:
                answers.append((path, found))
                at = found.end()
                break
            start += 1
    return answers


def archive_script(paths: Sequence[str], *, archive_id: int = 0, tries: int = 8, first_wait_s: float = 1.0) -> str:
    """Bash for the administrator that asks Lustre to archive ``paths``; it does not wait for the copies.

    Files go in batches of :data:`BATCH`. A coordinator that is stopped (EAGAIN) is asked again up to ``tries``
    times, twice as late each time. A batch that is refused, or too big for this version (E2BIG), is halved
    until the refused file stands alone, so that it keeps no other from being archived.

    Exits 0 when every file's request was taken, 1 when some were refused (:func:`parse_archive_report` tells
    which), :data:`NO_PRIVILEGE` when sudo refused. Harmless to repeat: a current file's request does nothing.
    """
    files = "\n".join(f"  {quote([check_path(path)])}" for path in paths)
    option = f"-a {archive_id:d} " if archive_id else ""
    return f"""\
set -u
files=(
{files}
)
sudo -n true </dev/null || exit {NO_PRIVILEGE}
refused=0
tries={tries:d}

# send START COUNT: request files[START..START+COUNT-1]
send() {{
  local start=$1 count=$2 code try=1 wait_ms={round(first_wait_s * 1000)} half error
  while :; do
    error=$(sudo -n lfs hsm_archive {option}"${{files[@]:start:count}}" 2>&1 </dev/null)
    code=$?
    [ "$code" -eq 11 ] && [ "$try" -lt "$tries" ] || break
    sleep "$(printf '%d.%03d' $((wait_ms / 1000)) $((wait_ms % 1000)))"
    try=$((try + 1))
    wait_ms=$((wait_ms < 15000 ? 2 * wait_ms : 30000))
  done
  [ "$code" -eq 0 ] && return 0
  if [ "$code" -ne 11 ] && [ "$count" -gt 1 ]; then
    half=$((count / 2))
    send "$start" "$half"
    send "$((start + half))" "$((count - half))"
    return 0
  fi
  refused=1
  [ "$code" -eq 11 ] && tries=1 # waited long enough for one coordinator
  error=${{error//[[:cntrl:]]/ }}
  for ((half = start; half < start + count; half++)); do
    printf 'bbpwf-archive: file %d: exit %d: %s\\n' "$half" "$code" "${{error:0:300}}"
  done
}}

for ((next = 0; next < ${{#files[@]}}; next += {BATCH})); do
  left=$((${{#files[@]}} - next))
  send "$next" "$((left < {BATCH} ? left : {BATCH}))"
done
exit "$refused"
"""


def parse_archive_report(output: bytes, paths: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Files that :func:`archive_script` could not request: the exit code of ``lfs`` and what it said."""
    return {
        paths[int(index)]: (int(code), text.strip())
        for index, code, text in _REPORT.findall(output.decode(errors="replace"))
        if int(index) < len(paths)
    }


def sha256_argv() -> list[str]:
    """SHA-256 of each file in the NUL-separated list on stdin."""
    return ["xargs", "-0", "-r", "sha256sum", "-b", "-z", "--"]


def parse_sha256(stdout: bytes) -> dict[str, str]:
    """Hex digests by path, from :func:`sha256_argv`; files that could not be read are absent."""
    digests = {}
    for entry in stdout.split(b"\0"):
        if found := _DIGEST.search(entry):
            digests[found[2].decode(errors="replace")] = found[1].decode()
    return digests


def stat_argv() -> list[str]:
    """Type, size in bytes and modification time of each file in the NUL-separated list on stdin."""
    return ["xargs", "-0", "-r", "stat", "--printf", "%f %s %.9Y %n\\0", "--"]


@dataclass(frozen=True)
class Found:
    """What ``stat`` says of a path, without following a symbolic link: ``mode`` is the raw ``st_mode``."""

    mode: int
    size: int
    mtime: str


def parse_stat(stdout: bytes) -> dict[str, Found]:
    """By path, from :func:`stat_argv`; paths where nothing is are absent."""
    answers = {}
    for entry in stdout.split(b"\0"):
        if found := _STAT.search(entry):
            answers[found[4].decode(errors="replace")] = Found(int(found[1], 16), int(found[2]), found[3].decode())
    return answers
