"""Streams of growing logs: whole lines, masked, from attempt to attempt, within limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import anyio
import pytest

from bbpwf.cluster.jobs import JobView
from bbpwf.errors import ConnectionLost, LimitExceeded, NotFound
from bbpwf.redact import Redactor
from bbpwf.states import JobState
from service import following
from service.following import Followers


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "EVERY_S", 0.001)


def view(state: JobState, log: str = "/log.0") -> JobView:
    return JobView(key="j", run_id="r", task_id="t", state=state, stdout=log)


def heard(followers: Followers, look: Callable[[], JobView], read: Callable[[int], bytes], start: int = 0) -> list[str]:
    async def listen() -> list[str]:
        return [piece.decode() async for piece in followers.follow(look, read, start)]

    return anyio.run(listen)


def growing(*pieces: bytes) -> tuple[Callable[[], JobView], Callable[[int], bytes]]:
    """A job that writes a piece between two looks and ends after the last."""
    turns: Iterator[int] = iter(range(1, 1000))
    written = [b""]

    def look() -> JobView:
        written[0] = b"".join(pieces[: next(turns)])
        return view(JobState.RUNNING if len(written[0]) < len(b"".join(pieces)) else JobState.COMPLETED)

    return look, lambda offset: written[0][offset:]


def test_whole_lines_come_as_they_are_written_and_the_rest_at_the_end() -> None:
    look, read = growing(b"one\ntw", b"o\nthr", b"ee")
    assert heard(Followers(Redactor()), look, read) == ["one\n", "two\n", "three"]


def test_a_secret_that_was_written_in_two_pieces_is_masked() -> None:
    redactor = Redactor()
    redactor.add("open-sesame")
    look, read = growing(b"key: open-", b"sesame\n")
    assert "sesame" not in "".join(heard(Followers(redactor), look, read))


def test_the_next_attempt_s_log_is_told_from_its_beginning() -> None:
    looks = iter([view(JobState.RUNNING, "/a"), view(JobState.RUNNING, "/b"), view(JobState.COMPLETED, "/b")] * 2)
    last = [""]

    def look() -> JobView:
        found = next(looks)
        last[0] = found.stdout
        return found

    def read(offset: int) -> bytes:
        return {"/a": b"first\n", "/b": b"second\n"}[last[0]][offset:]

    assert heard(Followers(Redactor()), look, read) == ["first\n", "second\n"]


def test_a_log_that_is_not_there_yet_and_an_agent_that_is_away_are_waited_for() -> None:
    answers: list[bytes | Exception] = [NotFound("no log"), ConnectionLost("agent"), b"here\n", b""]

    def read(_: int) -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def look() -> JobView:
        return view(JobState.COMPLETED if len(answers) < 3 else JobState.RUNNING)

    assert heard(Followers(Redactor()), look, read) == ["here\n"]


def test_an_agent_that_stays_away_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PATIENCE", 3)

    def read(_: int) -> bytes:
        raise ConnectionLost("agent")

    assert heard(Followers(Redactor()), lambda: view(JobState.RUNNING), read) == []


def test_readers_are_limited_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "MAX_READERS", 1)
    followers = Followers(Redactor())
    look, read = growing(b"x\n")

    async def two() -> None:
        first = followers.follow(look, read, 0)
        assert await anext(first) == b"x\n"
        with pytest.raises(LimitExceeded):
            followers.follow(look, read, 0)
        assert [piece async for piece in first] == []

    anyio.run(two)
    look, read = growing(b"x\n")
    assert heard(followers, look, read) == ["x\n"]
