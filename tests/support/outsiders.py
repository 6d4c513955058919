"""A Python and folders that users without any rights get to, wherever this interpreter and pytest's folders are."""

from __future__ import annotations

import shutil
import site
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65_534


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder whose parents everybody may enter; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="bbpwf-o-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def python_for_all(folder: Path) -> str:
    """An interpreter with our packages that everybody can run; made in ``folder`` if this one is out of their reach."""
    if _runs(sys.executable):
        return sys.executable
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    home = folder / "python"
    packages = home / "lib" / f"python{version}" / "site-packages"
    packages.mkdir(parents=True)
    (home / "bin").mkdir()
    (home / "bin" / "python").symlink_to(f"/usr/bin/python{version}")
    (home / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    lines = [f"import site; site.addsitedir({each!r})\n" for each in site.getsitepackages()]
    (packages / "ours.pth").write_text("".join(lines))
    for each in [home, *home.rglob("*")]:
        if not each.is_symlink():
            each.chmod(0o755 if each.is_dir() else 0o644)
    python = str(home / "bin" / "python")
    if not _runs(python):
        pytest.fail(f"neither {sys.executable} nor {python} can be run by a user without rights")
    return python


def _runs(python: str) -> bool:
    try:
        done = subprocess.run(
            [python, "-c", "import bbpwf.settings, luigi, tasks"],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            env={"PYTHONDONTWRITEBYTECODE": "1"},
            cwd="/",
            check=False,
            timeout=60,
        )
    except PermissionError:
        return False
    return done.returncode == 0
