"""The wheels of the image: made outside, by this machine's own pip, as the constraints pin them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("bbpwf", "service", "tasks", "sandbox")
EXTRAS = "service,postgresql"
"""What the service needs, as ``setup.cfg`` names it; ``install.py`` installs the same."""
_BESIDE = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")
_KINDS = frozenset(
    {".py", ".sh", ".html", ".mako", ".ini", ".cfg", ".json", ".txt", ".hoc", ".swc", ".typed", ".css", ".js"}
)


def gather(source: Path, cache: Path) -> list[Path]:
    """Wheels of bbpwf as it is in ``source``, of everything its service needs, and of pip.

    Those that others publish are kept in ``cache`` until the pins change.

    Raises:
        RuntimeError: pip failed; the message ends with what it said.
    """
    kept = cache / "wheels" / _name(source)
    if not kept.is_dir():
        kept.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix="wheels-", dir=cache))
        try:
            with _copy_of(source) as copy:
                pins = ["--constraint", str(source / "constraints.txt"), "--wheel-dir", str(draft)]
                _pip("wheel", *pins, f"{copy}[{EXTRAS}]", "pip", "setuptools")
            for own in draft.glob("bbpwf-*.whl"):
                own.unlink()
            draft.rename(kept)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    own_folder = cache / "own"
    shutil.rmtree(own_folder, ignore_errors=True)
    with _copy_of(source) as copy:
        # its build tool comes from the wheels that are there
        offline = ["--no-index", f"--find-links={kept}", "--wheel-dir", str(own_folder)]
        _pip("wheel", "--no-deps", *offline, str(copy))
    return sorted([*own_folder.glob("*.whl"), *(each for each in kept.glob("*.whl") if _installed(each))])


def _installed(wheel: Path) -> bool:
    return not wheel.name.startswith("setuptools-")


def _name(source: Path) -> str:
    recipe = b"".join((source / each).read_bytes() for each in ("constraints.txt", "setup.cfg", "pyproject.toml"))
    return hashlib.sha256(recipe + f"{EXTRAS} {sys.version}".encode()).hexdigest()[:16]


class _copy_of:  # noqa: N801  reads as a verb
    """A copy of what belongs in the wheel and of nothing else, for building writes into its source."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._folder = tempfile.TemporaryDirectory(prefix="bbpwf-source-")

    def __enter__(self) -> Path:
        target = Path(self._folder.name)
        for name in _BESIDE:
            shutil.copy(self._source / name, target / name)
        for file in _belonging(self._source):
            copy = target / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self._source / file, copy)
        return target

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def _belonging(source: Path) -> Iterator[Path]:
    """Files of the packages: those that are under version control, if anything is, and of kinds that belong there."""
    listed = subprocess.run(
        ["git", "-C", str(source), "ls-files", "-z", "--", *PACKAGES], check=False, capture_output=True, timeout=60
    )
    if listed.returncode == 0 and listed.stdout:
        files = [Path(os.fsdecode(each)) for each in listed.stdout.split(b"\0") if each]
    else:
        files = [each.relative_to(source) for name in PACKAGES for each in (source / name).rglob("*")]
    for file in files:
        hidden = any(part.startswith((".", "__pycache__")) for part in file.parts)
        if not hidden and (file.suffix in _KINDS or file.name == "py.typed") and (source / file).is_file():
            yield file


def _pip(*arguments: str) -> None:
    argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    made = subprocess.run(
        argv, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=900
    )
    if made.returncode:
        raise RuntimeError(f"pip {arguments[0]} failed:\n{made.stdout[-2000:]}")
