"""What is in an image: a bill of materials in CycloneDX's form, read from the image itself."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from email.parser import BytesHeaderParser
from pathlib import Path

import docker
from cyclonedx.model import Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

_DISTRIBUTION = "debian-12"
_METADATA = re.compile(r"\.dist-info/METADATA\Z")


def write(client: docker.DockerClient, tag: str, target: Path) -> int:
    """Write the bill of an image's Debian and Python packages; answers how many there are."""
    image = client.images.get(tag)
    name, _, version = tag.partition(":")
    bom = Bom()
    bom.metadata.component = Component(
        name=name,
        version=version,
        type=ComponentType.CONTAINER,
        bom_ref=f"{name}@{version}",
        properties=[Property(name="bbpwf:image-id", value=image.id)],
    )
    container = client.containers.create(tag)
    try:
        for component in (
            *debian(_file(container, "/var/lib/dpkg/status")),
            *python(_tree(container, "/opt/bbpwf/lib")),
        ):
            bom.components.add(component)
    finally:
        container.remove()
    bom.register_dependency(bom.metadata.component, bom.components)
    for component in bom.components:
        bom.register_dependency(component)
    outputter = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6)
    outputter.output_to_file(str(target), allow_overwrite=True, indent=2)
    return len(bom.components)


def debian(status: bytes) -> Iterator[Component]:
    """Installed packages of dpkg's ``status`` file."""
    for paragraph in status.split(b"\n\n"):
        fields = BytesHeaderParser().parsebytes(paragraph)
        if fields["Package"] and (fields["Status"] or "").endswith(" installed"):
            qualifiers = {"arch": fields["Architecture"], "distro": _DISTRIBUTION}
            purl = PackageURL("deb", "debian", fields["Package"], fields["Version"], qualifiers)
            yield Component(
                name=fields["Package"],
                version=fields["Version"],
                type=ComponentType.LIBRARY,
                purl=purl,
                bom_ref=purl.to_string(),
            )


def python(tree: tarfile.TarFile) -> Iterator[Component]:
    """Installed distributions of a Python environment."""
    with tree:
        for member in tree:
            content = tree.extractfile(member) if _METADATA.search(member.name) else None
            if content is None:
                continue
            fields = BytesHeaderParser().parsebytes(content.read())
            purl = PackageURL("pypi", None, re.sub(r"[-_.]+", "-", fields["Name"]).lower(), fields["Version"])
            yield Component(
                name=fields["Name"],
                version=fields["Version"],
                type=ComponentType.LIBRARY,
                purl=purl,
                bom_ref=purl.to_string(),
            )


def _file(container: docker.models.containers.Container, path: str) -> bytes:
    with _tree(container, path) as archive:
        content = archive.extractfile(next(iter(archive)))
        return content.read() if content is not None else b""


def _tree(container: docker.models.containers.Container, path: str) -> tarfile.TarFile:
    chunks, _ = container.get_archive(path)
    return tarfile.open(fileobj=io.BytesIO(b"".join(chunks)))
