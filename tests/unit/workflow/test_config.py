"""A launch's .cfg: what holds, what is refused, and with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from bbpwf.errors import InvalidConfig
from bbpwf.workflow.building import build, find_task, import_module
from bbpwf.workflow.config import luigi_config
from tests.unit.workflow.conftest import Bench

TASKS = """
import luigi
from bbpwf.workflow import SbatchTask

class Grow(SbatchTask):
    soma_radius = luigi.FloatParameter()
    cells = luigi.IntParameter(default=3)
    def command(self): return "true"

class Prune(luigi.Task):
    cells = luigi.IntParameter(default=1)
"""


def _built(bench: Bench, text: str, task: str = "Grow") -> object:
    name = bench.module("grow_flow", TASKS)
    cfg = bench.path / "launch.cfg"
    cfg.write_text(text)
    import sys

    if str(bench.attachments) not in sys.path:
        sys.path.append(str(bench.attachments))
    with luigi_config(cfg) as config:
        module = import_module(name)
        config.check()
        return build(find_task(module, task), {})


def test_kebab_and_snake_case_are_the_same(bench: Bench) -> None:
    made = _built(bench, "[Grow]\nsoma-radius = 2.5\ncells: 7\n")
    assert (made.soma_radius, made.cells) == (2.5, 7)  # type: ignore[attr-defined]  # a task of the test's


def test_default_reaches_every_task_with_such_a_parameter(bench: Bench) -> None:
    text = "[DEFAULT]\ncells = 5\nhome = /gpfs\naccount = proj12\n[Grow]\nsoma-radius = 1\nworkdir = %(home)s/w\n"
    made = _built(bench, text)
    assert (made.cells, made.account, made.workdir) == (5, "proj12", "/gpfs/w")  # type: ignore[attr-defined]  # as above
    assert _built(bench, text, "Prune").cells == 5  # type: ignore[attr-defined]  # as above


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[Grow]\nsoma-radios = 1\n", "[Grow] has no option 'soma-radios' [launch.cfg] Did you mean 'soma_radius'?"),
        ("[Grwo]\nsoma_radius = 1\n", "section [Grwo] [launch.cfg] Did you mean 'Grow'?"),
        ("[Zzz]\na = 1\n", "Known tasks: "),
        ("[Grow]\nsoma_radius = 1\ncells = many\n", "[Grow] cells: 'many' is not valid"),
        ("[Grow]\nsoma_radius =\n", "[Grow] soma_radius: '' is not valid"),
        ("[Grow]\nsoma_radius\n", "malformed"),
        ("[Grow]\nsoma_radius = 1\nsoma-radius = 2\n", "both 'soma_radius' and 'soma-radius'"),
        ("[Grow]\nsoma_radius = 1\n[Grow]\ncells = 1\n", "already exists"),
        ("soma_radius = 1\n", "no section headers"),
        ("[Grow]\nsoma_radius = 1\njob_name = 50%\n", "Write %% for a percent sign"),
        ("[Grow]\nsoma_radius = %(nothing)s\n", "[Grow] soma_radius: "),
        ("[SbatchTask]\naccount = a\n", "sections are not inherited"),
        ("[DEFAULT]\ncells = many\n", "cells: 'many' is not valid"),
    ],
)
def test_what_makes_no_sense_is_named(bench: Bench, text: str, said: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        _built(bench, text)
    assert said in str(caught.value)


def test_luigis_own_sections_pass(bench: Bench) -> None:
    _built(bench, "[Grow]\nsoma_radius = 1\n[worker]\nping_interval = 2\n[resources]\nlicence = 1\n")


def test_one_launchs_config_is_gone_after_it(bench: Bench) -> None:
    _built(bench, "[Grow]\nsoma_radius = 1\ncells = 9\n")
    assert _built(bench, "[Grow]\nsoma_radius = 1\n").cells == 3  # type: ignore[attr-defined]  # a task of the test's


def test_a_missing_file_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="cannot be read"), luigi_config(tmp_path / "absent.cfg"):
        pass
    (tmp_path / "bad.cfg").write_bytes(b"[A]\nb = \xff\xfe\n")
    with pytest.raises(InvalidConfig, match="not UTF-8"), luigi_config(tmp_path / "bad.cfg"):
        pass
