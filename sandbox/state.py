"""What a sandbox knows about itself: its folder, its parts, and how to find them again.

``sandbox.json`` in the folder holds it, rewritten atomically whenever a part starts or ends. It holds no secret.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from bbpwf.errors import BbpwfError
from sandbox.double import save
from sandbox.pids import ProcessId, boot_id

FILE = "sandbox.json"
VERSION = 1
_LONGEST_FOLDER = 45
"""Bytes: the deepest Unix socket, ``<folder>/state/runs/<uuid>/agent.sock``, has to fit into 107 (Linux, sun_path)."""


class SandboxError(BbpwfError):
    """The sandbox cannot be started, found or stopped."""


class Part(BaseModel):
    """One process of the sandbox."""

    model_config = ConfigDict(frozen=True)

    name: str
    process: ProcessId
    log: Path
    port: int | None = None
    url: str = ""
    """What answers when the part is well; empty if it speaks no HTTP."""


class SandboxState(BaseModel):
    """The content of ``sandbox.json``."""

    model_config = ConfigDict(extra="forbid")

    version: int = VERSION
    folder: Path
    """Absolute, without links; also the value of the marker in the environment of its processes."""
    short: Path
    """The same folder by a name that is short enough for sockets in it: itself, or a link to it."""
    boot: str
    started: str = ""
    """When it was last started, UTC."""
    code: str = ""
    """Version of the code that the service was started with."""
    backend: Literal["slurm", "local"] = "slurm"
    why_local: str = ""
    """What is missing for a real Slurm, for a person; empty with ``slurm``."""
    keycloak: bool = False
    """Whether the issuer is a real Keycloak rather than the small double."""
    service: bool = True
    complete: bool = False
    """Whether everything was started; False while starting, after a failure, and after ``down``."""
    ports: dict[str, int] = {}
    urls: dict[str, str] = {}
    parts: list[Part] = []

    def part(self, name: str) -> Part | None:
        """The part of this name, if it was started."""
        return next((part for part in self.parts if part.name == name), None)

    def stale(self) -> bool:
        """Whether the machine was restarted since: then none of its processes can be alive."""
        return self.boot != boot_id()


def folder_of(given: Path | None) -> Path:
    """The sandbox's folder: as given, else ``$BBPWF_SANDBOX_DIR``, else ``./.sandbox``; absolute, without links."""
    return (given or Path(os.environ.get("BBPWF_SANDBOX_DIR") or ".sandbox")).expanduser().resolve()


def load(folder: Path) -> SandboxState | None:
    """What ``folder`` knows of its sandbox; ``None`` if there never was one.

    Raises:
        SandboxError: the file is there and cannot be understood.
    """
    path = folder / FILE
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SandboxError(f"{path} cannot be read: {error.strerror}") from error
    try:
        if json.loads(text).get("version") != VERSION:
            raise SandboxError(
                f"{path} was written by another version of bbpwf",
                hint="End that sandbox with the version that started it, or remove its folder.",
            )
        return SandboxState.model_validate_json(text)
    except (ValidationError, json.JSONDecodeError, AttributeError) as error:
        raise SandboxError(f"{path} is damaged", hint="`bbpwf sandbox down --purge` removes what is left.") from error


def store(state: SandboxState) -> None:
    """Write ``sandbox.json`` of the state's folder."""
    save(state.folder / FILE, state.model_dump_json(indent=1) + "\n")


def short_name(folder: Path, places: tuple[Path, ...] | None = None) -> Path:
    """A path to ``folder`` that leaves room for the sandbox's Unix sockets: itself, or a link made for it.

    Args:
        folder: absolute, without links.
        places: where a link may be put; the system's temporary folders if not given.

    Raises:
        SandboxError: no short place can be written to.
    """
    if len(os.fsencode(folder)) <= _LONGEST_FOLDER:
        return folder
    for place in places or (Path("/tmp"), Path(tempfile.gettempdir())):  # noqa: S108 the shortest writable name there is
        digest = hashlib.sha256(os.fsencode(folder)).hexdigest()
        for length in (8, 12, 16):
            link = place / f"bbpwf-{os.getuid()}-{digest[:length]}"
            if len(os.fsencode(link)) > _LONGEST_FOLDER:
                break
            with contextlib.suppress(OSError):
                link.symlink_to(folder)
            if _ours(link, folder):
                return link
    raise SandboxError(
        f"the path {folder} is too long for Unix sockets, and no short link to it could be made",
        hint=f"Choose a folder of at most {_LONGEST_FOLDER} bytes with --dir.",
    )


def _ours(link: Path, folder: Path) -> bool:
    # somebody else's link, even to the right place, could be turned elsewhere later
    try:
        return link.lstat().st_uid == os.getuid() and link.readlink() == folder
    except OSError:
        return False


def drop_short_name(state: SandboxState) -> None:
    """Remove the link that :func:`short_name` made, if any."""
    if state.short != state.folder and _ours(state.short, state.folder):
        with contextlib.suppress(FileNotFoundError):
            state.short.unlink()


@contextlib.contextmanager
def exclusively(folder: Path, *, within: float = 60.0) -> Iterator[None]:
    """Let one process at a time start or stop the sandbox of ``folder``, which is made if absent.

    Raises:
        SandboxError: another one is at it for longer than ``within`` seconds, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SandboxError(f"{folder} cannot be used as a sandbox: {error.strerror}") from error
    try:
        deadline = time.monotonic() + within
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SandboxError(
                        "another command is starting or stopping this sandbox", where=str(folder)
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)
