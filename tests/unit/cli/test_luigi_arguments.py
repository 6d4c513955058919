"""Task parameters on the command line."""

from __future__ import annotations

import pytest

from bbpwf.cli.luigi_arguments import parameters
from bbpwf.errors import InvalidParameter


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], {}),
        (["--a", "1"], {"a": "1"}),
        (["--a=1", "--b-c", "x y"], {"a": "1", "b_c": "x y"}),
        (["--v", "-70.5"], {"v": "-70.5"}),
        (["--v=--odd"], {"v": "--odd"}),
        (["--fast", "--n", "2"], {"fast": "true", "n": "2"}),
        (["--fast"], {"fast": "true"}),
        (["--empty", ""], {"empty": ""}),
        (["--text=a=b\nc"], {"text": "a=b\nc"}),
    ],
)
def test_words_become_parameters(words: list[str], found: dict[str, str]) -> None:
    assert parameters(words) == found


@pytest.mark.parametrize("words", [["1"], ["--a", "1", "2"], ["-a", "1"], ["--"], ["--=x"], ["--a", "1", "--a", "2"]])
def test_words_that_belong_nowhere(words: list[str]) -> None:
    with pytest.raises(InvalidParameter):
        parameters(words)
