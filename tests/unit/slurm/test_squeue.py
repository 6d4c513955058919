"""squeue: one entry for each element, hostile names, and answers that must not be believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbpwf.errors import SlurmError
from bbpwf.slurm import squeue
from bbpwf.states import JobState, job_state_from_slurm
from tests.unit.slurm.record import HOSTILE_COMMENT, HOSTILE_NAME, LONG, MARK
from tests.unit.slurm.recordings import recorded


def test_the_command_asks_for_everything_and_trusts_no_defaults() -> None:
    words = squeue.argv(MARK)
    assert {"--me", "--states=all", "--noheader", "SLURM_BITSTR_LEN=0", "SLURM_TIME_FORMAT=%s"} <= set(words)
    assert "--unset=SQUEUE_PARTITION" in words
    assert not any(word.startswith("--jobs") for word in words)


def test_a_single_id_is_asked_for_twice() -> None:
    assert squeue.argv(MARK, job_ids=["7"])[-1] == "--jobs=7,7"
    assert squeue.argv(MARK, job_ids=["7", "8_3"])[-1] == "--jobs=7,8_3"


def test_marks_are_new_each_time() -> None:
    assert len({squeue.new_mark() for _ in range(100)}) == 100


def test_recorded_queue() -> None:
    entries = squeue.parse(recorded("squeue_all").stdout, MARK)
    by_id = {entry.display_id: entry for entry in entries}
    assert len(by_id) == len(entries)
    assert by_id["1"].state == "FAILED"
    assert by_id["1"].reason == "NonZeroExitCode"
    waiting = [e for e in entries if e.job_id == "8" and e.state == "PENDING"]
    assert [e.array_index for e in waiting] == list(range(2, 10))
    assert {e.comment for e in waiting} == {"bbpwf:b1"}
    assert {e.name for e in waiting} == {"arr"}
    assert [e.array_index for e in entries if e.job_id == "9"] == [1, 3, 4, 5, 6, 7, 8, 20, 25, 30, 35, 40, 100]
    assert [e.array_index for e in entries if e.job_id == "10"] == LONG
    assert by_id["12"].state == "CANCELLED"
    assert by_id["12"].submitted is not None
    assert by_id["12"].started is not None
    assert all(job_state_from_slurm(e.state) is not None for e in entries)


def test_recorded_hostile_name_and_comment_come_through_whole() -> None:
    (hostile,) = [e for e in squeue.parse(recorded("squeue_all").stdout, MARK) if e.job_id == "11"]
    assert hostile.name == HOSTILE_NAME
    assert hostile.comment == HOSTILE_COMMENT
    assert hostile.state == "PENDING"
    assert hostile.reason == "JobHeldUser"


def test_recorded_requeue_and_completing() -> None:
    entries = {e.display_id: e for e in squeue.parse(recorded("squeue_after_requeue").stdout, MARK)}
    assert entries["8_2"].state == "PENDING"
    assert {entries[f"8_{i}"].state for i in (0, 1)} <= {"COMPLETING", "CANCELLED"}
    assert "8_5" not in entries or entries["8_5"].state == "CANCELLED"


def test_a_cut_expression_spoils_the_whole_answer() -> None:
    with pytest.raises(SlurmError, match="cut"):
        squeue.parse(recorded("squeue_cut").stdout, MARK)


def row(display: str, base: str, index: str, state: str, *, comment: str = "bbpwf:x", name: str = "n") -> str:
    fields = [display, base, index, base, state, "None", "debug", "n1", "1700000000", "N/A", "N/A", "0:00"]
    return f"{MARK}{chr(0x1F).join(fields)}{MARK}{comment}{MARK}{name}{MARK}\n"


def test_banners_before_and_nothing_at_all() -> None:
    assert squeue.parse("", MARK) == []
    assert squeue.parse("Welcome!\n", MARK) == []
    assert len(squeue.parse("Welcome!\n" + row("5", "5", "N/A", "RUNNING"), MARK)) == 1


def test_completing_hides_the_end_and_is_no_end() -> None:
    (entry,) = squeue.parse(row("5", "5", "N/A", "COMPLETING"), MARK)
    assert entry.completing
    assert job_state_from_slurm(entry.state) is JobState.RUNNING


def test_unknown_states_are_handed_on_by_name() -> None:
    (entry,) = squeue.parse(row("5", "5", "N/A", "LEVITATING"), MARK)
    assert entry.state == "LEVITATING"
    assert job_state_from_slurm(entry.state) is None


def test_heterogeneous_components_are_single_jobs() -> None:
    (entry,) = squeue.parse(row("123+1", "124", "N/A", "RUNNING"), MARK)
    assert entry.array_index is None


@pytest.mark.parametrize("length", [1, 40, 75, 90, 150])
def test_an_answer_cut_anywhere_is_not_half_believed(length: int) -> None:
    text = row("5", "5", "N/A", "RUNNING") + row("6_[0-3]", "6", "0-3", "PENDING")
    whole = squeue.parse(text, MARK)
    try:
        part = squeue.parse(text[:length], MARK)
    except SlurmError:
        return
    assert part == whole[: len(part)]
    assert text[:length].count(MARK) % 4 == 0


@given(name=st.text(max_size=40), comment=st.text(max_size=40))
def test_any_name_and_comment_leave_the_facts_alone(name: str, comment: str) -> None:
    if MARK in name or MARK in comment:
        return
    entries = squeue.parse(
        row("5", "5", "N/A", "RUNNING", name=name, comment=comment) + row("6", "6", "N/A", "PENDING"), MARK
    )
    assert [(e.display_id, e.state) for e in entries] == [("5", "RUNNING"), ("6", "PENDING")]
    assert entries[0].name == name


def test_a_job_named_like_a_record_makes_none() -> None:
    forged = "x\n" + row("9", "9", "N/A", "COMPLETED").replace(MARK, "\x1eguess\x1e")
    entries = squeue.parse(row("5", "5", "N/A", "RUNNING", name=forged), MARK)
    assert [e.display_id for e in entries] == ["5"]


def test_ten_thousand_elements_in_one_record() -> None:
    assert len(squeue.parse(row("7_[0-9999%50]", "7", "0-9999%50", "PENDING"), MARK)) == 10_000
