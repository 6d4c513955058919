"""What may be uploaded with a launch, under which names, and where it is kept.

Attachments are kept by content (``<state>/uploads/<sha256>``) before a run exists, and copied into the run's own
folder when it does; a run records each as ``<name>#sha256=<hex>``. So a launch that is repeated is recognised by what
was uploaded rather than by what the files are called, and a crash in between loses nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import sys
import tempfile
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

from bbpwf.errors import LimitExceeded, UnsafeUpload

MAX_FILES = 500
"""Most files of one launch, those inside archives included."""
MAX_DEPTH = 8
"""Most folders above a file."""
MAX_NAME = 255
"""Most bytes of one path segment, as file systems have it."""
MAX_RATIO = 200
"""How much larger than its compressed form a file in an archive may be, beyond the first MiB."""
UNPACKED_FACTOR = 4
"""How much larger than the largest request everything unpacked may be."""

KEPT_S = 3600.0
"""How long uploads are kept here: runs have copies, so this is only for launches under way and for retries."""

_CHUNK = 1024 * 1024
_TIDY_EVERY_S = 600.0
_MODULE_SUFFIXES = (".py", ".pyc", ".pyi", ".so")
_OURS = frozenset({"bbpwf", "tasks", "service", "sandbox", "sitecustomize", "usercustomize"})
_MARK = "#sha256="


@dataclass(frozen=True)
class Attachment:
    """A file that was kept: its relative name with ``/``, SHA-256 (hex) and size in bytes."""

    name: str
    sha256: str
    size: int

    def __str__(self) -> str:
        return f"{self.name}{_MARK}{self.sha256}"


def attachment_name(recorded: str) -> str:
    """The name in what a run records of an attachment."""
    return recorded.rpartition(_MARK)[0] or recorded


@cache
def _installed() -> frozenset[str]:
    return _OURS | sys.stdlib_module_names | frozenset(metadata.packages_distributions())


def safe_name(name: str) -> str:
    """``name`` if it is a plain relative path that stays where it is put.

    Raises:
        UnsafeUpload: it is absolute, climbs, is too long or deep, or holds characters that have no place in a name.
    """
    shown = repr(name[:80])
    if not name or name.startswith(("/", "~")) or "\\" in name or (len(name) > 1 and name[1] == ":"):
        raise UnsafeUpload(f"the attachment name {shown} is not a relative path with '/'")
    if any(unicodedata.category(c).startswith("C") for c in name):
        raise UnsafeUpload(f"the attachment name {shown} contains control characters")
    segments = name.split("/")
    if any(s in {"", ".", ".."} for s in segments):
        raise UnsafeUpload(f"the attachment name {shown} contains an empty, '.' or '..' segment")
    if any(s.startswith("-") or s != s.strip() for s in segments):
        raise UnsafeUpload(f"the attachment name {shown} has a segment that starts with '-' or has outer spaces")
    if len(segments) > MAX_DEPTH + 1 or any(len(s.encode()) > MAX_NAME for s in segments):
        raise UnsafeUpload(f"the attachment name {shown} is too long or too deep")
    if _MARK in name:
        raise UnsafeUpload(f"the attachment name {shown} contains {_MARK!r}")
    return unicodedata.normalize("NFC", name)


def check_together(names: Iterable[str]) -> None:
    """That the files can lie beside each other, and that none takes the place of an installed module.

    Raises:
        UnsafeUpload: two names collide, or a module or package would be imported instead of an installed one.
    """
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for name in names:
        folded = name.casefold()
        if folded in seen:
            raise UnsafeUpload(f"the attachments {seen[folded]!r} and {name!r} collide")
        seen[folded] = name
        parts = folded.split("/")
        folders.update({"/".join(parts[:n]): name for n in range(1, len(parts))})
        _check_shadow(name)
    for folder, inside in folders.items():
        if folder in seen:
            raise UnsafeUpload(f"the attachment {seen[folder]!r} collides with the folder of {inside!r}")


def _check_shadow(name: str) -> None:
    first, slash, _ = name.partition("/")
    if not name.endswith(_MODULE_SUFFIXES):
        return
    module = first if slash else first.partition(".")[0]
    if module in _installed():
        raise UnsafeUpload(
            f"the attachment {name!r} would hide the installed module {module!r}", hint="Give it another name."
        )


class Uploads:
    """The folder of kept files.

    Args:
        folder: where to keep them; made if absent.
        largest: most bytes of one launch as sent; what it unpacks to may be :data:`UNPACKED_FACTOR` times that.
    """

    def __init__(self, folder: Path, *, largest: int) -> None:
        self._folder = folder
        self._largest = largest * UNPACKED_FACTOR
        self._tidied = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def keep(self, files: Iterable[tuple[str, BinaryIO]]) -> list[Attachment]:
        """Check and keep the files of one launch, sorted by name. ``.zip`` archives are unpacked in their place.

        Raises:
            UnsafeUpload: names the file, and what is wrong with it.
            LimitExceeded: too many files, or too many bytes once unpacked.
        """
        if time.monotonic() - self._tidied > _TIDY_EVERY_S:
            self._tidied = time.monotonic()
            self.forget(older_than=KEPT_S)
        kept: list[Attachment] = []
        room = self._largest
        for sent, file in files:
            name = safe_name(sent)
            found = (
                self._unpack(name, file, room, len(kept)) if name.endswith(".zip") else [self._one(name, file, room)]
            )
            kept += found
            room -= sum(each.size for each in found)
            if len(kept) > MAX_FILES:
                raise LimitExceeded(f"more than {MAX_FILES} files are attached")
        check_together(each.name for each in kept)
        return sorted(kept, key=lambda each: each.name)

    def copy_into(self, recorded: Iterable[str], folder: Path) -> None:
        """Put the attachments that a run recorded into ``folder``, which then holds these files and no other.

        Raises:
            UnsafeUpload: a file is no longer kept; the launch has to be repeated.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".attachments-"))
        try:
            for entry in recorded:
                name, _, digest = entry.rpartition(_MARK)
                target = draft / safe_name(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    shutil.copyfile(self._folder / digest, target)
                except FileNotFoundError:
                    raise UnsafeUpload(f"the attachment {name!r} is no longer kept", hint="Launch again.") from None
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # somebody else copied the same files at the same time
                draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def forget(self, *, older_than: float) -> None:
        """Remove what was kept more than ``older_than`` seconds ago; runs have their own copies."""
        limit = time.time() - older_than
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < limit:
                    path.unlink()

    def _one(self, name: str, file: BinaryIO, room: int) -> Attachment:
        digest = hashlib.sha256()
        size = 0
        descriptor, draft = tempfile.mkstemp(dir=self._folder, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as target:
                while chunk := file.read(_CHUNK):
                    size += len(chunk)
                    if size > room:
                        raise LimitExceeded(f"the attachments are over the limit of {self._largest} bytes", where=name)
                    digest.update(chunk)
                    target.write(chunk)
            Path(draft).replace(self._folder / digest.hexdigest())
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
        return Attachment(name, digest.hexdigest(), size)

    def _unpack(self, name: str, file: BinaryIO, room: int, already: int) -> list[Attachment]:
        try:
            with zipfile.ZipFile(file) as archive:
                members = [m for m in archive.infolist() if not m.is_dir()]
                if len(members) + already > MAX_FILES:
                    raise LimitExceeded(f"more than {MAX_FILES} files are attached", where=name)
                inside: list[Attachment] = []
                for member in members:
                    self._check_member(name, member)
                    with archive.open(member) as content:
                        kept = self._one(safe_name(member.filename), _Bounded(content, name, member), room)  # type: ignore[arg-type]  # read() is all that is used
                    room -= kept.size
                    inside.append(kept)
                return inside
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            raise UnsafeUpload(f"the archive {name!r} cannot be read: {error}") from error

    @staticmethod
    def _check_member(name: str, member: zipfile.ZipInfo) -> None:
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in {0, stat.S_IFREG}:
            raise UnsafeUpload(f"{member.filename[:80]!r} in {name!r} is a link or device, not a file")
        if member.flag_bits & 0x1:
            raise UnsafeUpload(f"{member.filename[:80]!r} in {name!r} is encrypted")
        if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise UnsafeUpload(f"{member.filename[:80]!r} in {name!r} is packed in an unusual way")


class _Bounded:
    """A member of an archive, read only as far as its ratio allows; what its header claims is not trusted."""

    def __init__(self, content: object, archive: str, member: zipfile.ZipInfo) -> None:
        self._content = content
        self._archive = archive
        self._member = member
        self._read = 0

    def read(self, size: int) -> bytes:
        chunk: bytes = self._content.read(size)  # type: ignore[attr-defined]  # zipfile.ZipExtFile
        self._read += len(chunk)
        if self._read > _CHUNK + MAX_RATIO * self._member.compress_size:
            raise UnsafeUpload(f"{self._member.filename[:80]!r} in {self._archive!r} unpacks to far more than it holds")
        return chunk
