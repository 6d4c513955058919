"""HSM commands: what is sent, and what is understood of the answers, with names made to confuse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbpwf.data import hsm
from bbpwf.errors import InvalidInput

BITS = {1: "exists", 2: "dirty", 4: "released", 8: "archived", 16: "never_release", 32: "never_archive", 64: "lost"}
PRINT_ORDER = (4, 1, 2, 8, 16, 32, 64)

# pieces that look like the answers themselves
piece = st.one_of(
    st.sampled_from(
        [": (0x00000009) exists archived, archive_id:1", "\n", ": NOOP", ": ", "'", '"', " ", "-n", "$(x)"]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=8),
)
name = st.lists(piece, min_size=1, max_size=4).map("".join).filter(lambda text: text not in (".", ".."))
path = st.lists(name, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
paths = st.lists(path, min_size=1, max_size=8, unique=True)


def line(file: str, mask: int, archive_id: int) -> bytes:
    """As ``lfs`` prints it (contracts §5.1)."""
    words = "".join(f" {BITS[bit]}" for bit in PRINT_ORDER if mask & bit)
    return f"{file}: (0x{mask:08x}){words}{f', archive_id:{archive_id}' if archive_id else ''}\n".encode()


@given(paths, st.data())
def test_every_state_is_read_back_whatever_the_names(files: list[str], data: st.DataObject) -> None:
    masks = [data.draw(st.integers(0, 0x7F)) for _ in files]
    ids = [data.draw(st.integers(0, 12)) for _ in files]
    said = b"".join(line(*each) for each in zip(files, masks, ids, strict=True))
    found = hsm.parse_hsm_state(said, files)
    assert [(found[each].mask, found[each].archive_id) for each in files] == list(zip(masks, ids, strict=True))


@given(paths, st.data())
def test_every_action_is_read_back_whatever_the_names(files: list[str], data: st.DataObject) -> None:
    words = st.sampled_from(
        [
            ("NOOP", "", ""),
            ("ARCHIVE running (4096 bytes moved)", "ARCHIVE", "running"),
            ("ARCHIVE waiting (from 0 to EOF)", "ARCHIVE", "waiting"),
            ("RESTORE running (from 0 to 1048575)", "RESTORE", "running"),
            ("CANCEL done ", "CANCEL", "done"),
        ]
    )
    said = [data.draw(words) for _ in files]
    stdout = "".join(f"{file}: {text}\n" for file, (text, _, _) in zip(files, said, strict=True)).encode()
    found = hsm.parse_hsm_action(stdout, files)
    assert [(found[each].verb, found[each].phase) for each in files] == [(verb, phase) for _, verb, phase in said]


@pytest.mark.parametrize(
    ("text", "mask", "archive_id"),
    [
        ("f: (0x00000000)", 0x0, 0),
        ("f: (0x00000009) exists archived, archive_id:1", 0x9, 1),
        ("f: (0x0000000b) exists dirty archived, archive_id:1", 0xB, 1),
        ("f: (0x0000000d) released exists archived, archive_id:1", 0xD, 1),
        ("f: (0x00000001) exists, archive_id:1", 0x1, 1),
        ("f: (0x00000009) exists archived, archive_id: 3", 0x9, 3),  # the man page's space
    ],
)
def test_known_lines(text: str, mask: int, archive_id: int) -> None:
    assert hsm.parse_hsm_state(f"/{text}\n".encode(), ["/f"]) == {"/f": hsm.HsmState(mask, archive_id)}


def test_only_current_counts_as_archived() -> None:
    current = {mask for mask in range(0x200) if hsm.archived(mask)}
    assert 0x9 in current
    assert 0xD in current
    assert not current & {0x0, 0x1, 0xB, 0x49, 0x4B, 0x3}
    assert all(mask & 0x8 and not mask & 0x42 for mask in current)


def test_a_file_that_was_not_answered_is_absent_and_a_banner_is_skipped() -> None:
    said = b"Welcome to the head node\n/a: (0x00000009) exists archived, archive_id:1\n/c: (0x00000000)\n"
    assert set(hsm.parse_hsm_state(said, ["/a", "/b", "/c"])) == {"/a", "/c"}


def test_a_cut_answer_is_no_answer() -> None:
    assert hsm.parse_hsm_state(b"/a: (0x0000", ["/a"]) == {}
    assert hsm.parse_hsm_state(b"", ["/a"]) == {}


@pytest.mark.parametrize("bad", ["relative", "/a//b", "/a/../b", "/a/", "/", "/a\0b", "/\udcff", "", "-rf", "/./x"])
def test_paths_that_cannot_be_archived_are_refused(bad: str) -> None:
    for build in (hsm.hsm_state_argv, hsm.hsm_action_argv, hsm.nul_separated, hsm.archive_script):
        with pytest.raises(InvalidInput, match="path"):
            build([bad])


@given(paths)
def test_digests_and_stats_are_read_back_whatever_the_names(files: list[str]) -> None:
    digests = {file: f"{index:064x}" for index, file in enumerate(files)}
    said = b"banner\n" + b"".join(f"{digests[file]} *{file}\0".encode() for file in files)
    assert hsm.parse_sha256(said) == digests
    stats = b"".join(f"81a4 {index} 1795226351.271189373 {file}\0".encode() for index, file in enumerate(files))
    found = hsm.parse_stat(stats)
    assert {file: found[file].size for file in files} == {file: index for index, file in enumerate(files)}


def test_refusals_are_read_by_number_so_that_names_cannot_forge_them() -> None:
    said = b"noise\nbbpwf-archive: file 1: exit 1: Cannot send HSM request (use of /b): Operation not permitted\n"
    found = hsm.parse_archive_report(said, ["/a", "/b"])
    assert found == {"/b": (1, "Cannot send HSM request (use of /b): Operation not permitted")}
    assert hsm.parse_archive_report(b"bbpwf-archive: file 9: exit 1: x\n", ["/a"]) == {}
