"""Attachments: what is kept, and what never touches the disk."""

from __future__ import annotations

import io
import stat
import zipfile
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbpwf.errors import BbpwfError, LimitExceeded, UnsafeUpload
from service.uploads import MAX_FILES, Uploads, attachment_name, safe_name

MB = 1024 * 1024


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_DEFLATED) -> BinaryIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    buffer.seek(0)
    return buffer


def special(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o777) << 16
    return info


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path / "uploads", largest=MB)


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_files_and_archives_arrive_as_they_were_sent(uploads: Uploads, tmp_path: Path) -> None:
    archive = zipped(("inner/__init__.py", b""), ("inner/tasks.py", b"x = 1\n"), ("notes/", b""))
    kept = uploads.keep([("b.cfg", io.BytesIO(b"[core]\n")), ("code.zip", archive), ("a/data.txt", io.BytesIO(b"1"))])
    assert [each.name for each in kept] == ["a/data.txt", "b.cfg", "inner/__init__.py", "inner/tasks.py"]
    recorded = [str(each) for each in kept]
    assert [attachment_name(each) for each in recorded] == [each.name for each in kept]
    uploads.copy_into(recorded, tmp_path / "run" / "attachments")
    assert files_below(tmp_path / "run" / "attachments") == {each.name for each in kept}
    assert (tmp_path / "run" / "attachments" / "inner" / "tasks.py").read_bytes() == b"x = 1\n"


def test_other_content_under_the_same_name_is_recorded_as_something_else(uploads: Uploads) -> None:
    (one,) = uploads.keep([("t.py", io.BytesIO(b"1"))])
    (two,) = uploads.keep([("t.py", io.BytesIO(b"2"))])
    (again,) = uploads.keep([("t.py", io.BytesIO(b"1"))])
    assert str(one) == str(again) != str(two)


def test_copying_again_leaves_these_files_and_no_other(uploads: Uploads, tmp_path: Path) -> None:
    kept = uploads.keep([("t.py", io.BytesIO(b"1"))])
    target = tmp_path / "attachments"
    uploads.copy_into([str(each) for each in kept], target)
    (target / "left-over.pyc").touch()
    uploads.copy_into([str(each) for each in kept], target)
    assert files_below(target) == {"t.py"}


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../up.py",
        "a/../../up.py",
        "a/..",
        "./a.py",
        "a//b.py",
        "a/",
        "~/x.py",
        "C:\\x.py",
        "C:x.py",
        "a\\..\\b.py",
        "nul\0.py",
        "line\nfeed.py",
        "\u202etxt.py",
        "-rf",
        "a/-x.py",
        " a.py",
        "a /b.py",
        "x" * 256,
        "/".join("abcdefghijk") + ".py",
        "a#sha256=00.py",
    ],
)
def test_names_that_are_refused(uploads: Uploads, tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafeUpload):
        uploads.keep([(name, io.BytesIO(b"x"))])
    assert files_below(tmp_path) == set()


@given(st.text(min_size=1, max_size=40))
def test_a_name_that_passes_stays_below_its_folder(name: str) -> None:
    try:
        safe = safe_name(name)
    except UnsafeUpload:
        return
    base = Path("/base")
    assert (base / safe).is_relative_to(base)
    assert ".." not in Path(safe).parts
    assert not Path(safe).is_absolute()


@pytest.mark.parametrize(
    "names",
    [
        ("a.py", "a.py"),
        ("a.py", "A.py"),
        ("a", "a/b.py"),
        ("A", "a/b.py"),
        ("e\u0301.txt", "\u00e9.txt"),
    ],
)
def test_names_that_collide(uploads: Uploads, names: tuple[str, str]) -> None:
    with pytest.raises(UnsafeUpload, match="collide"):
        uploads.keep([(name, io.BytesIO(b"x")) for name in names])


@pytest.mark.parametrize(
    "name",
    [
        "json.py",
        "luigi.py",
        "luigi/__init__.py",
        "bbpwf/errors.py",
        "tasks/simulation.py",
        "service.so",
        "sitecustomize.py",
        "usercustomize.py",
        "os.cpython-311-x86_64-linux-gnu.so",
        "pydantic/__init__.pyc",
        "_strptime.py",
    ],
)
def test_installed_modules_cannot_be_hidden(uploads: Uploads, name: str) -> None:
    with pytest.raises(UnsafeUpload, match="hide"):
        uploads.keep([(name, io.BytesIO(b""))])
    with pytest.raises(UnsafeUpload, match="hide"):
        uploads.keep([("code.zip", zipped((name, b"")))])


def test_data_may_be_called_as_a_module(uploads: Uploads) -> None:
    assert len(uploads.keep([("json.txt", io.BytesIO(b"")), ("calendar/days.csv", io.BytesIO(b""))])) == 2


@pytest.mark.parametrize(
    ("what", "archive"),
    [
        ("climbs", zipped(("../../evil.py", b""))),
        ("absolute", zipped(("/evil.py", b""))),
        ("backslashes", zipped(("..\\evil.py", b""))),
        ("symlink", zipped((special("link", stat.S_IFLNK), b"/etc/passwd"))),
        ("device", zipped((special("dev", stat.S_IFCHR), b""))),
        ("fifo", zipped((special("fifo", stat.S_IFIFO), b""))),
        ("unusual packing", zipped(("a.txt", b"x" * 1000), compression=zipfile.ZIP_LZMA)),
        ("bomb", zipped(("zeros", bytes(3 * MB)))),
        ("no archive", io.BytesIO(b"PK but no more")),
        ("empty", io.BytesIO(b"")),
        ("cut", io.BytesIO(zipped(("a.txt", b"hello" * 100)).read()[:-30])),
    ],
)
def test_archives_that_are_refused(uploads: Uploads, tmp_path: Path, what: str, archive: BinaryIO) -> None:
    archive.seek(0)
    with pytest.raises(UnsafeUpload):
        uploads.keep([("code.zip", archive)])
    assert files_below(tmp_path) == set()


def test_a_corrupt_member_is_refused(uploads: Uploads) -> None:
    content = bytearray(zipped(("a.txt", b"hello world" * 50), compression=zipfile.ZIP_STORED).read())
    content[60] ^= 0xFF
    with pytest.raises(UnsafeUpload, match="cannot be read"):
        uploads.keep([("code.zip", io.BytesIO(bytes(content)))])


def test_an_archive_that_lies_about_its_sizes_is_bounded_all_the_same(uploads: Uploads, tmp_path: Path) -> None:
    content = bytearray(zipped(("zeros", bytes(3 * MB))).read())
    size = (3 * MB).to_bytes(4, "little")
    for start in range(len(content) - 3):
        if content[start : start + 4] == size:
            content[start : start + 4] = (10).to_bytes(4, "little")
    with pytest.raises(UnsafeUpload):
        uploads.keep([("code.zip", io.BytesIO(bytes(content)))])
    assert files_below(tmp_path) == set()


def test_limits_of_size_and_number(uploads: Uploads) -> None:
    with pytest.raises(LimitExceeded):
        uploads.keep([("big.bin", io.BytesIO(bytes(4 * MB + 1)))])
    with pytest.raises(LimitExceeded):
        uploads.keep([(f"{n}.bin", io.BytesIO(bytes(MB))) for n in range(5)])
    with pytest.raises(LimitExceeded):
        uploads.keep([(f"{n}.txt", io.BytesIO(b"")) for n in range(MAX_FILES + 1)])
    with pytest.raises(LimitExceeded):
        uploads.keep([("many.zip", zipped(*((f"{n}.txt", b"") for n in range(MAX_FILES + 1))))])


def test_what_is_no_longer_kept_is_said(uploads: Uploads, tmp_path: Path) -> None:
    kept = uploads.keep([("t.py", io.BytesIO(b"1"))])
    uploads.forget(older_than=-1)
    with pytest.raises(BbpwfError, match="no longer kept"):
        uploads.copy_into([str(each) for each in kept], tmp_path / "attachments")
