"""Which object a path on the file system becomes."""

from __future__ import annotations

import pytest

from bbpwf.data.archive import ArchiveLocation


@pytest.mark.parametrize(
    ("prefix", "root", "path", "key"),
    [
        ("", "/obi/data/scratch", "/obi/data/scratch/runs/r/a b.h5", "runs/r/a b.h5"),
        ("vlab/proj", "/obi/data/scratch", "/obi/data/scratch/f", "vlab/proj/f"),
        ("/vlab/proj/", "/obi/data/scratch/", "/obi/data/scratch/f", "vlab/proj/f"),
        ("", "/", "/f", "f"),
        ("", "/obi/data/scratch", "/obi/data/scratch2/f", None),
        ("", "/obi/data/scratch", "/obi/data/scratch", None),
        ("", "/obi/data/scratch", "/etc/passwd", None),
    ],
)
def test_keys(prefix: str, root: str, path: str, key: str | None) -> None:
    assert ArchiveLocation("bucket", prefix, root).key(path) == key
