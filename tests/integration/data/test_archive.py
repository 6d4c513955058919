"""The confirmed archive, end to end: real commands on the double of Lustre, real HTTP to S3."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bbpwf.clock import SystemClock
from bbpwf.data.archive import ArchiveLimits, ArchiveLocation, Archiver
from bbpwf.data.s3 import ObjectStore
from bbpwf.errors import ArchiveError, ConnectionLost, DataError, DeadlineExceeded, InvalidInput, LimitExceeded
from bbpwf.settings import AwsSettings
from bbpwf.transport.protocol import Completed
from tests.integration.data.conftest import SCRATCH_BUCKET, Bucket, Shared

LIMITS = ArchiveLimits(poll_first_s=0.05, poll_longest_s=0.2, object_grace_s=0.3, requests=2)
Build = Callable[..., Archiver]


@pytest.fixture
def build(shared: Shared, aws: AwsSettings) -> Build:
    def make(*, privileged: bool = True, limits: ArchiveLimits = LIMITS, commands: Shared | None = None) -> Archiver:
        return Archiver(
            commands or shared,
            ObjectStore(aws),
            ArchiveLocation(SCRATCH_BUCKET, shared.prefix, str(shared.root)),
            clock=SystemClock(),
            privileged=privileged,
            limits=limits,
        )

    return make


def test_files_are_archived_and_confirmed_with_size_and_digest(build: Build, shared: Shared, s3: Bucket) -> None:
    names = ["a b/$(touch pwned).h5", "-n", "quote'\".txt", "é: (0x00000009) exists archived, archive_id:1", "empty"]
    paths = [shared.file(name, b"" if name == "empty" else name.encode()) for name in names]
    found = build().archive([*paths, paths[0]], timeout=60)
    assert [each.path for each in found] == paths
    for name, each in zip(names, found, strict=True):
        content = b"" if name == "empty" else name.encode()
        assert each.url == f"s3://{SCRATCH_BUCKET}/{shared.prefix}/{name}"
        assert (each.size, each.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert s3.get(SCRATCH_BUCKET, f"{shared.prefix}/{name}") == content
    assert not (shared.root / "pwned").exists()


def test_more_files_than_a_request_holds(build: Build, shared: Shared) -> None:
    paths = [shared.file(f"many/{index:03}") for index in range(130)]
    limits = ArchiveLimits(poll_first_s=0.05, poll_longest_s=0.5, files_per_job=70)
    assert [each.path for each in build(limits=limits).archive(paths, timeout=60)] == paths


def test_archiving_again_only_confirms(build: Build, shared: Shared) -> None:
    paths = [shared.file("a"), shared.file("b")]
    first = build().archive(paths, timeout=60)
    shared.faults(fail=["*"], forget=["*"])  # no new request could succeed
    assert build().archive(paths, timeout=60) == first


def test_a_file_that_changed_since_is_archived_anew(build: Build, shared: Shared, s3: Bucket) -> None:
    path = shared.file("f", "one")
    build().archive([path], timeout=60)
    Path(path).write_text("two two")
    (found,) = build().archive([path], timeout=60)
    assert found.sha256 == hashlib.sha256(b"two two").hexdigest()
    assert s3.get(SCRATCH_BUCKET, f"{shared.prefix}/f") == b"two two"


def test_each_file_that_cannot_be_archived_is_named_with_its_reason(
    build: Build, shared: Shared, tmp_path: Path
) -> None:
    good = shared.file("good")
    (shared.root / "link").symlink_to(good)
    outside = tmp_path / "outside"
    outside.write_text("x")
    marked = shared.file("marked")
    shared.run(["lfs", "hsm_set", "--noarchive", marked])
    shared.file("dir/f")
    absent, folder = f"{shared.root}/absent", f"{shared.root}/dir"
    with pytest.raises(ArchiveError) as caught:
        build().archive([good, absent, folder, f"{shared.root}/link", str(outside), marked], timeout=60)
    said = str(caught.value)
    assert "5 of 6 files" in said
    for path, why in (
        (absent, "it does not exist"),
        (folder, "it is a folder"),
        (f"{shared.root}/link", "it is not a regular file"),
        (str(outside), "it is outside"),
        (marked, "it is marked never to be archived"),
    ):
        assert f"{path}: {why}" in said
    assert f"{good}:" not in said
    assert build().archive([good], timeout=60)  # it was brought home all the same


def test_a_request_that_fails_is_renewed_and_then_given_up(build: Build, shared: Shared) -> None:
    bad, good = shared.file("bad"), shared.file("good")
    shared.faults(fail=["*/bad"])
    with pytest.raises(ArchiveError, match=r"1 of 2 .*/bad: it was requested 2 times, and each request ended"):
        build().archive([bad, good], timeout=60)
    log = (shared.disk / ".lfs/copytool.log").read_text()
    assert (log.count("/bad'"), log.count("/good'")) == (2, 1)


def test_a_request_that_is_forgotten_is_renewed(build: Build, shared: Shared) -> None:
    path = shared.file("f")
    shared.faults(forget=["*"])
    with pytest.raises(ArchiveError, match="requested 2 times"):
        build().archive([path], timeout=60)


def test_a_coordinator_that_is_stopped_for_a_while_is_waited_for(build: Build, shared: Shared) -> None:
    path = shared.file("f")
    shared.faults(eagain=1)
    assert build().archive([path], timeout=60)


def test_one_refused_file_keeps_no_other_from_being_archived(build: Build, shared: Shared) -> None:
    paths = [shared.file(f"{index:02}") for index in range(20)]
    # archived under another archive id: Lustre refuses the request, which the flags alone do not show
    shared.run(["sudo", "lfs", "hsm_set", "--exists", "-i", "2", paths[7]], admin=True)
    archiver = Archiver(
        _WithArchiveId(shared),
        build()._objects,
        ArchiveLocation(SCRATCH_BUCKET, shared.prefix, str(shared.root)),
        clock=SystemClock(),
        privileged=True,
        limits=LIMITS,
    )
    with pytest.raises(ArchiveError, match="1 of 20") as caught:
        archiver.archive(paths, timeout=60)
    assert f"{paths[7]}: Lustre refused the request (exit 1)" in str(caught.value)
    others = paths[:7] + paths[8:]
    assert [each.path for each in build().archive(others, timeout=60)] == others


class _WithArchiveId:
    """The cluster, with requests for archive 1 spelled out."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def run(self, argv: Sequence[str], *, stdin: bytes, timeout: float) -> Completed:
        return self._shared.run(argv, stdin=stdin, timeout=timeout)

    def privileged(self, script: str, *, name: str, timeout: float) -> Completed:
        return self._shared.privileged(script.replace("hsm_archive ", "hsm_archive -a 1 "), name=name, timeout=timeout)


def test_a_copy_that_never_ends_reaches_the_limit(build: Build, shared: Shared) -> None:
    slow, good = shared.file("slow"), shared.file("good")
    shared.faults(never_finish=["*/slow"])
    with pytest.raises(DeadlineExceeded, match=r"1 of 2 files .*/slow: .*ARCHIVE"):
        build().archive([slow, good], timeout=6)


def test_a_file_that_keeps_changing_is_never_confirmed(build: Build, shared: Shared) -> None:
    path = shared.file("f", "0")

    class Writing(Shared):
        def run(
            self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60, admin: bool = False
        ) -> Completed:
            if "sha256sum" in argv:
                with Path(path).open("a") as file:
                    file.write("more")
            return super().run(argv, stdin=stdin, timeout=timeout, admin=admin)

    with pytest.raises(ArchiveError, match="each request ended without archiving it: exists, dirty, archived"):
        build(commands=Writing(shared.disk, shared.root, shared.prefix)).archive([path], timeout=60)


@pytest.mark.parametrize(
    ("knob", "why"),
    [
        ("skip_upload", "there is no object s3://"),
        ("truncate", "has 7 bytes instead of 8"),
        ("corrupt", "has other content"),
    ],
)
def test_lustre_is_not_believed_when_the_object_is_wrong(build: Build, shared: Shared, knob: str, why: str) -> None:
    bad, good = shared.file("bad"), shared.file("good")
    shared.faults(**{knob: ["*/bad"]})
    with pytest.raises(ArchiveError, match="1 of 2") as caught:
        build().archive([bad, good], timeout=60)
    assert "bad: Lustre says that it is archived, but" in str(caught.value)
    assert why in str(caught.value)


def test_a_checksum_of_the_object_counts_even_above_the_size_that_is_read_back(
    build: Build, shared: Shared, s3: Bucket
) -> None:
    path = shared.file("f", b"x" * 100)
    limits = ArchiveLimits(poll_first_s=0.05, object_grace_s=0.1, read_back=10)
    assert build(limits=limits).archive([path], timeout=60)  # no checksum, too large to read: size must do
    key = f"{shared.prefix}/f"
    s3.client.put_object(Bucket=SCRATCH_BUCKET, Key=key, Body=b"x" * 100, ChecksumAlgorithm="SHA256")
    assert build(limits=limits).archive([path], timeout=60)
    s3.client.put_object(Bucket=SCRATCH_BUCKET, Key=key, Body=b"y" * 100, ChecksumAlgorithm="SHA256")
    with pytest.raises(ArchiveError, match="other content"):
        build(limits=limits).archive([path], timeout=60)


def test_without_an_administrator_auto_export_is_watched(build: Build, shared: Shared) -> None:
    path = shared.file("f")
    with pytest.raises(DeadlineExceeded, match="not in the archive"):
        build(privileged=False).archive([path], timeout=3)
    shared.faults(auto_export=True)
    assert build(privileged=False).archive([path], timeout=60)


def test_an_administrator_without_sudo_is_told_at_once(build: Build, shared: Shared) -> None:
    path = shared.file("f")

    class Demoted(Shared):
        def privileged(self, script: str, *, name: str, timeout: float) -> Completed:
            return self.run(["bash", "-s"], stdin=script.encode(), timeout=timeout)

    with pytest.raises(ArchiveError, match="may not use sudo"):
        build(commands=Demoted(shared.disk, shared.root, shared.prefix)).archive([path], timeout=60)


def test_a_cluster_without_lfs_is_told_at_once(build: Build, shared: Shared) -> None:
    path = shared.file("f")
    for name in ("bin-sim", "bin-admin"):
        (shared.disk / name / "lfs").unlink()
    with pytest.raises(ArchiveError, match="has no lfs command"):
        build().archive([path], timeout=60)


def test_a_lost_connection_while_looking_is_survived(build: Build, shared: Shared) -> None:
    path = shared.file("f")

    class Flaky(Shared):
        lost = 0

        def run(
            self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60, admin: bool = False
        ) -> Completed:
            if not admin and self.lost < 2:
                self.lost += 1
                raise ConnectionLost("the connection broke", where="sim@head")
            return super().run(argv, stdin=stdin, timeout=timeout, admin=admin)

    assert build(commands=Flaky(shared.disk, shared.root, shared.prefix)).archive([path], timeout=60)


def test_a_newline_in_a_name_is_followed_through_lustre(build: Build, shared: Shared) -> None:
    # moto's server has no route to such a key; that the object is then missing shows how far the name came
    path = shared.file("two\nlines: (0x00000009) exists archived")
    shared.faults(skip_upload=["*"])
    with pytest.raises(ArchiveError, match="Lustre says that it is archived, but there is no object"):
        build().archive([path], timeout=60)


def test_impossible_paths_are_refused_before_anything_is_asked(build: Build) -> None:
    with pytest.raises(InvalidInput, match="not absolute"):
        build().archive(["relative"], timeout=1)
    assert build().archive([], timeout=1) == []


def test_the_object_store_tells_its_failures_apart(aws: AwsSettings, s3: Bucket) -> None:
    s3.client.put_object(Bucket=SCRATCH_BUCKET, Key="k", Body=b"12345", Metadata={"file-owner": "1"})
    store = ObjectStore(aws)
    info = store.head(SCRATCH_BUCKET, "k")
    assert info is not None
    assert (info.size, info.metadata["file-owner"]) == (5, "1")
    assert store.head(SCRATCH_BUCKET, "absent") is None
    assert store.head("no-such-bucket", "k") is None
    with pytest.raises(LimitExceeded, match="larger than 4"):
        store.sha256(SCRATCH_BUCKET, "k", limit=4)
    with pytest.raises(DataError, match="NoSuchKey"):
        store.sha256(SCRATCH_BUCKET, "absent", limit=4)
    nobody = ObjectStore(
        AwsSettings(region="us-east-1", endpoint_url="http://127.0.0.1:9"), connect_timeout_s=1, attempts=1
    )
    with pytest.raises(DataError, match="did not answer") as caught:
        nobody.head(SCRATCH_BUCKET, "k")
    assert caught.value.retryable
