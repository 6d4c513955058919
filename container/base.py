"""The base of the image, made on this machine from Debian's packages: no registry is asked for anything."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SUITE = "bookworm"
PACKAGES = ("ca-certificates", "libpython3.11-stdlib", "python3-minimal", "tini")
"""What is needed beside the essential packages of Debian; pip and compilers are not."""
_NEEDLESS = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian")
_EMPTIED = ("var/cache/apt", "var/lib/apt/lists", "var/log", "var/cache/debconf", "tmp")


def name() -> str:
    """The base's name: another one when anything that it is made of changes."""
    recipe = "\n".join((SUITE, *PACKAGES, *_NEEDLESS, *_EMPTIED))
    return f"base-{SUITE}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def archive(cache: Path) -> Path:
    """The base as a tar archive in ``cache``, made there unless it is there already. Needs root.

    Raises:
        RuntimeError: debootstrap or apt failed; the message ends with what it said.
    """
    kept = cache / f"{name()}.tar"
    if kept.exists():
        return kept
    cache.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="base-", dir=cache))
    root, draft = work / "root", work / "draft.tar"
    root.mkdir()
    # in memory: unpacking packages waits for the disk far longer than it works
    _run("mount", "-t", "tmpfs", "-o", "size=2g,mode=0755", "tmpfs", str(root))
    try:
        included = f"--include={','.join(PACKAGES)}"
        _run("debootstrap", "--variant=minbase", included, SUITE, str(root), _sources()[0][0])
        _upgrade(root)
        for folder in _NEEDLESS:
            shutil.rmtree(root / folder, ignore_errors=True)
        for folder in _EMPTIED:
            for entry in (root / folder).iterdir() if (root / folder).is_dir() else ():
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        # devices belong to the runtime; the machine's own addresses to nobody
        for left in ("etc/resolv.conf", "etc/hostname", "etc/apt/sources.list"):
            (root / left).unlink(missing_ok=True)
        packing = [
            "tar",
            "--create",
            "--numeric-owner",
            "--exclude=./dev/*",
            "--file",
            str(draft),
            "-C",
            str(root),
            ".",
        ]
        subprocess.run(packing, check=True, timeout=300)
        draft.replace(kept)
    finally:
        _run("umount", "--lazy", str(root))
        shutil.rmtree(work)
    return kept


def _upgrade(root: Path) -> None:
    """Bring in the updates since the release, security's first of all."""
    lines = [f"deb {site} {release} main\n" for site, release in _sources()]
    (root / "etc/apt/sources.list").write_text("".join(lines))
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    plain = ("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
    apt = (*plain, "chroot", str(root), "apt-get", "-qq", "-o", "Acquire::Retries=3", "-o", "DPkg::Use-Pty=0")
    _run(*apt, "update")
    _run(*apt, "-y", "-o", "DPkg::Options::=--force-unsafe-io", "upgrade")


def _sources() -> list[tuple[str, str]]:
    """Mirror and release of each of the suite's archives that this machine's own apt knows; the suite itself first."""
    asked = ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages"]
    lines = subprocess.run(asked, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    known = dict.fromkeys(tuple(line.split(maxsplit=1)) for line in lines)
    found = [(site, release) for site, release in known if release.split("-")[0] == SUITE]
    own = [each for each in found if each[1] == SUITE] or [("http://deb.debian.org/debian", SUITE)]
    return own[:1] + [each for each in found if each[1] != SUITE]


def _run(*argv: str) -> None:
    made = subprocess.run(
        argv,
        check=False,
        env={**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=1200,
    )
    if made.returncode:
        raise RuntimeError(f"{argv[0]} failed:\n{made.stdout[-2000:]}")
