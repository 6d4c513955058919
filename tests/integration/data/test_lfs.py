"""The double of ``lfs``, driven as a command: what contracts §5 says of the real one."""

from __future__ import annotations

import time
from pathlib import Path

from bbpwf.data import hsm
from sandbox import lfs
from tests.integration.data.conftest import SCRATCH_BUCKET, Bucket, Shared


def state(shared: Shared, path: str) -> hsm.HsmState:
    done = shared.run(hsm.hsm_state_argv([path]))
    assert done.exit_code == 0, done.err
    return hsm.parse_hsm_state(done.stdout, [path])[path]


def await_mask(shared: Shared, path: str, mask: int) -> None:
    deadline = time.monotonic() + 15
    while state(shared, path).mask != mask:
        assert time.monotonic() < deadline, f"{path} stays {state(shared, path)}"
        time.sleep(0.05)


def archive(shared: Shared, *paths: str) -> None:
    done = shared.run(["sudo", "-n", "lfs", "hsm_archive", *paths], admin=True)
    assert (done.exit_code, done.err) == (0, "")


def test_archiving_is_asynchronous_and_copies_the_bytes(shared: Shared, s3: Bucket) -> None:
    path = shared.file("a dir/spikes: (0x é'.h5", b"\x00\x01spikes")
    assert state(shared, path).mask == 0
    shared.faults(delay_s=600)
    archive(shared, path)
    await_mask(shared, path, 0x1)  # begun, not done
    action = hsm.parse_hsm_action(shared.run(hsm.hsm_action_argv([path])).stdout, [path])[path]
    assert (action.verb, action.phase) == ("ARCHIVE", "running")
    shared.run(["lfs", "hsm_cancel", path], admin=True)  # no privilege without sudo
    assert state(shared, path).mask == 0x1
    shared.run(["sudo", "lfs", "hsm_cancel", path], admin=True)
    shared.faults()
    archive(shared, path)
    await_mask(shared, path, 0x9)
    done = shared.run(["lfs", "hsm_state", path])
    assert done.out == f"{path}: (0x00000009) exists archived, archive_id:1\n"
    assert shared.run(["lfs", "hsm_action", path]).out == f"{path}: NOOP\n"
    assert s3.get(SCRATCH_BUCKET, f"{shared.prefix}/a dir/spikes: (0x é'.h5") == b"\x00\x01spikes"


def test_rewriting_makes_dirty_and_archiving_again_cleans(shared: Shared, s3: Bucket) -> None:
    path = shared.file("f", "one")
    archive(shared, path)
    await_mask(shared, path, 0x9)
    with Path(path).open("a") as file:
        file.write(" two")
    await_mask(shared, path, 0xB)
    archive(shared, path)
    await_mask(shared, path, 0x9)
    assert s3.get(SCRATCH_BUCKET, f"{shared.prefix}/f") == b"one two"
    Path(path).unlink()
    shared.file("g", "something else takes the inode")  # a new file is new, whatever number it gets
    assert state(shared, str(shared.root / "g")).mask == 0


def test_a_rename_keeps_the_state(shared: Shared) -> None:
    path = shared.file("f")
    archive(shared, path)
    await_mask(shared, path, 0x9)
    Path(path).rename(shared.root / "moved")
    assert state(shared, str(shared.root / "moved")).mask == 0x9


def test_release_restore_and_remove(shared: Shared, s3: Bucket) -> None:
    path = shared.file("f")
    assert shared.run(["sudo", "lfs", "hsm_release", path], admin=True).exit_code == 1  # not archived
    archive(shared, path)
    await_mask(shared, path, 0x9)
    assert shared.run(["sudo", "lfs", "hsm_release", path], admin=True).exit_code == 0
    assert shared.run(["lfs", "hsm_state", path]).out.endswith("(0x0000000d) released exists archived, archive_id:1\n")
    assert shared.run(["lfs", "hsm_restore", path]).exit_code == 0  # the one request that anybody may make
    await_mask(shared, path, 0x9)
    assert shared.run(["sudo", "lfs", "hsm_remove", path], admin=True).exit_code == 0
    await_mask(shared, path, 0x0)
    assert f"{shared.prefix}/f" not in s3.keys(SCRATCH_BUCKET, shared.prefix)


def test_only_the_administrator_may_archive(shared: Shared) -> None:
    path = shared.file("f")
    done = shared.run(["lfs", "hsm_archive", path])
    assert done.exit_code == 1
    assert done.err == f"Cannot send HSM request (use of {path}): Operation not permitted\n"
    done = shared.run(["sudo", "-n", "lfs", "hsm_archive", path])
    assert (done.exit_code, done.err) == (1, "sim is not in the sudoers file.\n")
    assert shared.run(["lfs", "hsm_set", "--archived", path]).exit_code == 1
    assert shared.run(["lfs", "hsm_set", "--noarchive", path]).exit_code == 0
    assert state(shared, path).no_archive
    assert shared.run(["sudo", "lfs", "hsm_archive", path], admin=True).exit_code == 1
    assert shared.run(["lfs", "hsm_set", path]).exit_code == 4


def test_the_size_of_a_request_is_limited(shared: Shared) -> None:
    paths = [shared.file(f"many/{index}") for index in range(53)]
    done = shared.run(["sudo", "lfs", "hsm_archive", *paths], admin=True)
    assert done.exit_code == 7
    assert "Argument list too long" in done.err
    archive(shared, *paths[:52])
    for path in paths[:52]:
        await_mask(shared, path, 0x9)
    assert state(shared, paths[52]).mask == 0


def test_what_is_no_regular_file_on_lustre_is_refused(shared: Shared, tmp_path: Path) -> None:
    path = shared.file("dir/f")
    done = shared.run(["sudo", "lfs", "hsm_archive", path, str(shared.root / "dir")], admin=True)
    assert done.exit_code == 4
    assert f'error: "{shared.root}/dir" is not a regular file' in done.err
    assert state(shared, path).mask == 0  # the whole batch was not sent
    outside = tmp_path / "outside"
    outside.write_text("x")
    done = shared.run(["lfs", "hsm_state", str(outside)])
    assert (done.exit_code, "Inappropriate ioctl" in done.err) == (25, True)
    done = shared.run(["sudo", "lfs", "hsm_archive", str(outside)], admin=True)
    assert done.err == f"Cannot read FID of {outside}: Inappropriate ioctl for device\n"
    done = shared.run(["sudo", "lfs", "hsm_archive", path, f"{path}.absent"], admin=True)
    assert (done.exit_code, done.err) == (2, f"Cannot stat {path}.absent: No such file or directory\n")
    assert shared.run(["lfs", "hsm_state"]).exit_code == 4


def test_old_and_new_versions_speak_of_a_missing_file(shared: Shared) -> None:
    first, last = shared.file("first"), shared.file("last")
    absent = f"{first}.absent"
    old = shared.run(["lfs", "hsm_state", first, absent, last])
    assert (old.exit_code, old.err) == (2, f"can't get hsm state for {absent}: No such file or directory\n")
    assert set(hsm.parse_hsm_state(old.stdout, [first, absent, last])) == {first}
    shared.faults(newer=True)
    new = shared.run(["lfs", "hsm_state", first, absent, last])
    assert (new.exit_code, new.err) == (
        2,
        f"lfs hsm_state: get HSM state for '{absent}' failed: No such file or directory\n",
    )
    assert set(hsm.parse_hsm_state(new.stdout, [first, absent, last])) == {first, last}


def test_a_stopped_coordinator_says_eagain(shared: Shared) -> None:
    path = shared.file("f")
    shared.faults(eagain=1)
    done = shared.run(["sudo", "lfs", "hsm_archive", path], admin=True)
    assert (done.exit_code, "Resource temporarily unavailable" in done.err) == (11, True)
    archive(shared, path)
    await_mask(shared, path, 0x9)


def test_copying_that_was_killed_goes_on_with_the_next_look(shared: Shared) -> None:
    path = shared.file("f")
    shared.faults(delay_s=3.0)
    archive(shared, path)
    lfs.stop(shared.disk)
    assert state(shared, path).mask in (0x0, 0x1)  # the look starts it again
    await_mask(shared, path, 0x9)


def test_auto_export_needs_nobody(shared: Shared, s3: Bucket) -> None:
    path = shared.file("f", "by itself")
    shared.faults(auto_export=True)
    await_mask(shared, path, 0x9)
    assert s3.get(SCRATCH_BUCKET, f"{shared.prefix}/f") == b"by itself"


def test_two_installations_do_not_see_each_other_and_a_second_one_keeps_the_masks(
    shared: Shared, s3: Bucket, tmp_path: Path
) -> None:
    path = shared.file("f")
    archive(shared, path)
    await_mask(shared, path, 0x9)
    other = tmp_path / "other"
    lfs.install(other, other / "data", s3.endpoint, SCRATCH_BUCKET, "other")
    theirs = Shared(other, other / "data", "other")
    assert theirs.run(["lfs", "hsm_state", path]).exit_code == 25
    lfs.install(shared.disk, shared.root, s3.endpoint, SCRATCH_BUCKET, shared.prefix)
    assert state(shared, path).mask == 0x9
