"""The code of the gateway's Lambdas as one archive: bbpwf, its service and what they import."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

NEEDLESS = ("pip", "setuptools", "sandbox", "tasks", "boto3", "botocore", "s3transfer", "luigi", "paramiko")
"""What Lambda's own runtime has (AWS's library), or no handler imports."""
_EPOCH = (1980, 1, 1, 0, 0, 0)


def write(wheels: Sequence[Path], target: Path) -> None:
    """Write the archive from wheels; the same wheels make the same bytes."""
    folder = Path(tempfile.mkdtemp(prefix="bbpwf-lambda-"))
    try:
        own = next(each for each in wheels if each.name.startswith("bbpwf-"))
        found = [f"--find-links={each}" for each in sorted({str(wheel.parent) for wheel in wheels})]
        argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index", *found]
        argv += ["--no-compile", "--root-user-action=ignore", "--target", str(folder), f"{own}[service]"]
        subprocess.run(argv, check=True, timeout=300)
        for name in NEEDLESS:
            for each in [folder / name, *folder.glob(f"{name}-*.dist-info")]:
                shutil.rmtree(each, ignore_errors=True)
        draft = target.with_suffix(".new")
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(each for each in folder.rglob("*") if each.is_file()):
                entry = zipfile.ZipInfo(str(file.relative_to(folder)), _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, file.read_bytes())
        draft.replace(target)
    finally:
        shutil.rmtree(folder)
