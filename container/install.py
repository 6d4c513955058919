"""Run while the image is built: ``install.py WHEELS TARGET`` makes a virtual environment from wheels alone.

pip is run from its own wheel and does not come along; neither does what a service never uses.
"""

from __future__ import annotations

import compileall
import shutil
import subprocess
import sys
from pathlib import Path
from py_compile import PycInvalidationMode

SERVICES = ("fsx", "s3", "secretsmanager", "sso", "sso-oidc", "signin", "sts")
"""Of AWS's service descriptions, 100 MB in all, those that an instance or its credentials need."""


def main(wheels: Path, target: Path) -> None:
    """Make the environment at ``target``."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(target)], check=True)
    pip = [sys.executable, str(next(wheels.glob("pip-*.whl")) / "pip"), "--python", str(target / "bin" / "python")]
    install = ["install", "--no-index", f"--find-links={wheels}", "--no-compile", "--disable-pip-version-check"]
    wanted = f"{next(wheels.glob('bbpwf-*.whl'))}[service,postgresql]"
    subprocess.run([*pip, *install, "--quiet", "--root-user-action=ignore", wanted], check=True)
    (packages,) = (target / "lib").glob("python3*/site-packages")
    for entry in (packages / "botocore" / "data").iterdir():
        if entry.is_dir() and entry.name not in SERVICES:
            shutil.rmtree(entry)
    shutil.rmtree(packages / "sandbox")  # doubles for tests; the commands that start them say that they are not here
    for tests in [each for each in packages.rglob("tests") if each.is_dir()]:
        shutil.rmtree(tests)
    # byte code that is believed without a look at its source: the file system is read-only
    mode = PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(str(target / "lib"), quiet=2, workers=2, invalidation_mode=mode)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
