"""Secrets that a test plants, and where they turned up: in bytes, files, databases and processes.

A planted value is looked for as it is, in pieces (lines, halves, the parts of a JWT), and as it looks in URLs, JSON,
HTML, base64 and hex. Whatever looks like somebody's private key or JWT is found too, planted or not.
"""

from __future__ import annotations

import base64
import contextlib
import fnmatch
import html
import json
import os
import re
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote, quote_plus

from cryptography.fernet import Fernet
from pydantic import BaseModel, SecretStr

SHORTEST = 12
"""Characters. Pieces that are shorter turn up by chance."""
SHAPES = {
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a JWT": re.compile(rb"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"),
}
"""What is a secret whoever made it."""
LEDGER, SPOOL = "bbpwf.db", ".bbpwf"
"""The file that every state folder has, and the folder of jobs' scripts and logs on a cluster."""


@dataclass(frozen=True)
class Leak:
    """A secret where it must not be. ``secret`` is its name, for a value has no place in a test's report either."""

    secret: str
    where: str


@dataclass(frozen=True)
class Home:
    """Where a secret may be, and why. Both patterns are of :mod:`fnmatch`; a file there is for its owner alone."""

    where: str
    secret: str
    reason: str


def pieces(value: str) -> set[str]:
    """The value, and parts of it that give too much away."""
    found = {value}
    lines = [line.strip() for line in value.splitlines() if "PRIVATE KEY" not in line]
    if len(lines) > 1:
        found.update(lines)
    elif value.startswith("eyJ"):
        found.update(value.split(".")[1:])  # the header says what algorithm it is
    elif len(value) >= 2 * SHORTEST:
        found |= {value[: len(value) // 2], value[len(value) // 2 :]}
    return {each for each in found if len(each) >= SHORTEST}


def spellings(value: str) -> Iterator[bytes]:
    """How a value looks in URLs, JSON, HTML, hex, and inside of longer base64."""
    raw = value.encode()
    for text in (value, quote(value, safe=""), quote_plus(value), json.dumps(value)[1:-1], repr(value)[1:-1]):
        yield text.encode()
    yield html.escape(value).encode()
    yield raw.hex().encode()
    for before in range(3):
        # characters that also depend on what stands before and behind are left out
        encoded = base64.b64encode(bytes(before) + raw)[(before * 8 + 5) // 6 :]
        encoded = encoded.rstrip(b"=")[:-1]
        yield encoded
        yield encoded.translate(bytes.maketrans(b"+/", b"-_"))


def settings_secrets(model: type[BaseModel], prefix: str = "BBPWF_") -> dict[str, bool]:
    """Environment variables of all secret settings; whether each holds a list."""
    found: dict[str, bool] = {}
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        variable = f"{prefix}{name.upper()}"
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= settings_secrets(kind, f"{variable}__")
        elif SecretStr in _kinds(kind):
            found[variable] = SecretStr in get_args(kind) and Ellipsis in get_args(kind)
    return found


def _kinds(annotation: Any) -> set[Any]:
    return {annotation}.union(*(_kinds(each) for each in get_args(annotation)))


def made_up() -> str:
    """A value for a secret that nobody else has; a Fernet key, so that it is good for all of them."""
    return Fernet.generate_key().decode()


class Canary:
    """The planted secrets. Values may be planted at any time; what is found is told by their names."""

    def __init__(self) -> None:
        self._needles: dict[bytes, str] = {}
        self._names: set[str] = set()

    @property
    def names(self) -> set[str]:
        """What was planted."""
        return set(self._names)

    def plant(self, name: str, value: str) -> str:
        """Look for ``value`` from now on; answers it."""
        assert len(value) >= SHORTEST, f"{name} is too short to be told from what is there by chance"
        self._names.add(name)
        for each in {*spellings(value), *(piece.encode() for piece in pieces(value))}:
            self._needles.setdefault(each, name)
        return value

    def plant_settings(self, model: type[BaseModel], given: dict[str, str]) -> dict[str, str]:
        """The environment with every secret setting of ``model``, planted; ``given`` are values that are not free."""
        env = {}
        for variable, many in settings_secrets(model).items():
            value = self.plant(variable, given.get(variable) or made_up())
            env[variable] = json.dumps([value]) if many else value
        return env

    def search(self, content: bytes) -> set[str]:
        """Names of the secrets, and of the shapes of secrets, that are in ``content``."""
        found = {name for needle, name in list(self._needles.items()) if needle in content}
        return found | {name for name, shape in SHAPES.items() if shape.search(content)}

    def in_files(self, folder: Path, homes: Sequence[Home] = ()) -> list[Leak]:
        """What is in the files below a folder, links not followed, and not at home there."""
        return [leak for path in _files(folder) for leak in self._in_file(folder, path, homes)]

    def in_what_was_written(self, folder: Path, homes: Sequence[Home] = ()) -> list[Leak]:
        """The same of all that the platform itself wrote below a folder: logs, spools, and folders with a ledger."""
        ours = {path.parent for path in _files(folder) if path.name == LEDGER}
        written = [path for path in _files(folder) if path.suffix == ".log" or SPOOL in path.parts]
        written += [path for path in _files(folder) if not ours.isdisjoint(path.parents)]
        return [leak for path in sorted(set(written)) for leak in self._in_file(folder, path, homes)]

    def _in_file(self, folder: Path, path: Path, homes: Sequence[Home]) -> Iterator[Leak]:
        where = str(path.relative_to(folder))
        try:
            content, mode = path.read_bytes(), path.stat().st_mode
        except (FileNotFoundError, PermissionError):  # it was for a moment only, or is kept from us as well
            return
        for name in sorted(self.search(content) | self.search(os.fsencode(where))):
            if not at_home(homes, name, where):
                yield Leak(name, where)
            elif stat.S_IMODE(mode) & 0o077:
                yield Leak(name, f"{where}, which others may read ({stat.S_IMODE(mode):o})")

    def in_database(self, path: Path) -> list[Leak]:
        """What is in any column of any table of an SQLite database."""
        found: list[Leak] = []
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            db.text_factory = lambda text: text.decode(errors="replace")
            tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for table in tables:
                cursor = db.execute(f'SELECT * FROM "{table}"')
                columns = [each[0] for each in cursor.description]
                for row in cursor:
                    for column, value in zip(columns, row, strict=True):
                        content = value if isinstance(value, bytes) else str(value).encode()
                        found += [Leak(name, f"{table}.{column}") for name in sorted(self.search(content))]
        assert tables, f"{path} has no tables"
        return sorted(set(found), key=str)


def at_home(homes: Iterable[Home], name: str, where: str) -> bool:
    """Whether a secret may be there."""
    return any(fnmatch.fnmatch(where, home.where) and fnmatch.fnmatch(name, home.secret) for home in homes)


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISREG(path.lstat().st_mode):
                    yield path


@dataclass(frozen=True)
class Seen:
    """Secrets in a process of this machine."""

    pid: int
    parent: int
    command: str
    argv: frozenset[str]
    environ: frozenset[str]


class Processes:
    """A thread that looks at the command line and environment of every process on this machine, again and again.

    A process that was forked and did not yet become its program shows its parent's: it is taken for its parent. What
    tests that run beside this one start is theirs: they give a user's command line that user's own token.
    """

    EVERY_S = 0.02

    def __init__(self, canary: Canary) -> None:
        self._canary = canary
        self._looked: dict[tuple[int, bytes], int] = {}
        self._found: list[Seen] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="processes", daemon=True)
        self.commands: set[str] = set()
        """Every command line that was seen."""

    def __enter__(self) -> Processes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def leaks(self, rightful: Callable[[Seen, str], bool]) -> list[Leak]:
        """Secrets in command lines, and in environments of processes that may not have them."""
        found = [Leak(name, f"argv of {seen.command}") for seen in self._found for name in seen.argv]
        for seen in list(self._found):
            strange = {name for name in seen.environ if not rightful(seen, name)}
            found += [Leak(name, f"environment of {seen.command}") for name in strange]
        return sorted(set(found), key=str)

    def look(self) -> None:
        """Look at them all once."""
        planted = len(self._canary.names)
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                with contextlib.suppress(OSError):
                    self._look_at(process, planted)

    def _run(self) -> None:
        while not self._stopping.wait(self.EVERY_S):
            self.look()

    def _look_at(self, process: Path, planted: int) -> None:
        pid, command = int(process.name), (process / "cmdline").read_bytes()
        if not command or pid == os.getpid() or self._looked.get((pid, command)) == planted:
            return
        parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        environ = (process / "environ").read_bytes()
        if (process / "cmdline").read_bytes() != command:
            return  # it became another program meanwhile: next time
        with contextlib.suppress(OSError):
            if (Path("/proc") / str(parent) / "cmdline").read_bytes() == command:
                return  # its parent still, as far as one can see
        self._looked[pid, command] = planted
        said = command.replace(b"\0", b" ").decode(errors="replace").strip()
        self.commands.add(said)
        seen = Seen(pid, parent, said, frozenset(self._canary.search(command)), frozenset(self._canary.search(environ)))
        if (seen.argv or seen.environ) and not _of_other_tests(parent):
            self._found.append(seen)


def _of_other_tests(pid: int) -> bool:
    """Whether a process is, or descends from, one that runs tests beside this one: a sibling of ours."""
    with contextlib.suppress(OSError):
        while pid > 1 and pid != os.getpid():
            parent = int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getppid():
                return True
            pid = parent
    return False
