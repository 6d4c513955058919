"""``python -m container.image``: builds the image, its bill of materials and the Lambda bundle on a daemon of its own.

What is made lies in ``.container/``: ``bbpwf-image.tar`` (for ``docker load``), ``bbpwf-sbom.cdx.json`` (CycloneDX) and
``bbpwf-gateway.zip`` (the Lambdas' code). Bases and wheels are kept there too, so that a second time is quick.
"""

from __future__ import annotations

import contextlib
import fcntl
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import docker
from docker.errors import BuildError, ImageNotFound

import bbpwf
from container import base, bundle, sbom, wheels
from sandbox import dockerd

HERE = Path(__file__).parent
CACHE = HERE.parent / ".container"
TAG = "bbpwf"
_FILES = {"Dockerfile": 0o644, "entry.sh": 0o755, "health.py": 0o644, "install.py": 0o644}
"""Everything of this folder that the build gets to see, with its mode in the image."""


def build(client: docker.DockerClient, *, source: Path = HERE.parent, cache: Path = CACHE) -> str:
    """Build the image on a daemon; answers its tag.

    The build has no network, and its context holds the files of :data:`_FILES` and wheels: nothing else of this machine
    or of the checkout can get into a layer.

    Raises:
        RuntimeError: it failed; the message ends with what was said.
    """
    whole_base = f"bbpwf-{base.name()}:latest"
    try:
        client.images.get(whole_base)
    except ImageNotFound:
        repository, _, tag = whole_base.partition(":")
        with _alone(cache):
            archive = base.archive(cache)
        client.api.import_image_from_file(str(archive), repository=repository, tag=tag)
    with tempfile.TemporaryFile() as context:
        with _alone(cache):
            _pack(context, wheels.gather(source, cache))
        context.seek(0)
        try:
            image, _ = client.images.build(
                fileobj=context,
                custom_context=True,
                tag=f"{TAG}:{bbpwf.__version__}",
                buildargs={"BASE": whole_base, "VERSION": bbpwf.__version__},
                network_mode="none",
                rm=True,
                forcerm=True,
            )
        except BuildError as error:
            said = "".join(str(line.get("stream", line.get("error", ""))) for line in error.build_log)
            raise RuntimeError(f"the image could not be built:\n{said[-3000:]}") from error
    image.tag(TAG, "latest")
    return f"{TAG}:{bbpwf.__version__}"


@contextlib.contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """One at a time fills the cache."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _pack(context: IO[bytes], wheels_: Sequence[Path]) -> None:
    """The build's context; times and owners are the same every time, so that layers are found again."""
    with tarfile.open(fileobj=context, mode="w") as archive:
        for name, mode in _FILES.items():
            _add(archive, HERE / name, name, mode)
        for wheel in wheels_:
            _add(archive, wheel, f"wheels/{wheel.name}", 0o644)


def _add(archive: tarfile.TarFile, file: Path, name: str, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = file.stat().st_size
    entry.mode = mode
    with file.open("rb") as content:
        archive.addfile(entry, content)


def save(client: docker.DockerClient, tag: str, target: Path) -> None:
    """Write the image as ``docker save`` does."""
    draft = target.with_suffix(".new")
    with draft.open("wb") as file:
        for chunk in client.images.get(tag).save(named=True):
            file.write(chunk)
    draft.replace(target)


def main() -> None:
    """Build everything, and say where it is."""
    folder = Path(tempfile.mkdtemp(prefix="bbpwf-d-", dir="/tmp"))  # sockets want short paths
    try:
        with dockerd.running(folder, in_memory=True) as client:
            tag = build(client)
            size = client.images.get(tag).attrs["Size"] / 1e6
            save(client, tag, CACHE / "bbpwf-image.tar")
            listed = sbom.write(client, tag, CACHE / "bbpwf-sbom.cdx.json")
    finally:
        dockerd.remove(folder)
    bundle.write(wheels.gather(HERE.parent, CACHE), CACHE / "bbpwf-gateway.zip")
    sys.stdout.write(
        f"{tag}: {size:.0f} MB, {listed} components\n"
        f"  image     {CACHE.name}/bbpwf-image.tar (docker load)\n"
        f"  contents  {CACHE.name}/bbpwf-sbom.cdx.json (CycloneDX)\n"
        f"  Lambdas   {CACHE.name}/bbpwf-gateway.zip\n"
    )


if __name__ == "__main__":
    main()
