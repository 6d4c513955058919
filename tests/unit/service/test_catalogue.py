"""Launches that are alike are looked at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bbpwf.clock import SystemClock
from bbpwf.cluster.runs import RunRequest
from bbpwf.errors import InvalidParameter
from bbpwf.settings import HeadsSettings, ServiceSettings, Settings
from service.catalogue import Catalogue
from service.containment import Containment
from service.uploads import Uploads

MODULE = """
import luigi

with open("LOOKS", "a") as file:
    file.write("x")


class Hello(luigi.Task):
    who = luigi.Parameter()
    often = luigi.IntParameter(default=1)
    points = luigi.ListParameter(default=[])
"""


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    (tmp_path / "workflows").mkdir()
    (tmp_path / "looked").mkdir()
    module = MODULE.replace("LOOKS", str(tmp_path / "looked" / "looks"))
    (tmp_path / "workflows" / "greetings.py").write_text(module)
    settings = Settings(
        state_dir=tmp_path / "state",
        service=ServiceSettings(workflows_path=(tmp_path / "workflows",)),
        heads=HeadsSettings(write_paths=(tmp_path / "looked",)),
    )
    return Catalogue(settings, Uploads(tmp_path / "uploads", largest=1024), Containment(settings, 1), SystemClock())


def launch(**params: Any) -> RunRequest:
    return RunRequest(workflow_url="greetings:Hello", workflow_params=params)


def looks(tmp_path: Path) -> int:
    return len((tmp_path / "looked" / "looks").read_text())


def test_launches_that_differ_in_free_values_are_looked_at_once(catalogue: Catalogue, tmp_path: Path) -> None:
    for number in range(5):
        catalogue.validate(launch(who=f"world {number}", often=number))
    assert looks(tmp_path) == 1
    catalogue.validate(launch(who="world", points=[1, 2]))
    catalogue.validate(launch(who="moon", points=[1, 2]))
    assert looks(tmp_path) == 2
    catalogue.validate(launch(who="world", points=[1, 3]))
    assert looks(tmp_path) == 3


@pytest.mark.parametrize("wrong", [{}, {"who": 3}, {"who": "x", "often": True}, {"who": "x", "often": 1.5}])
def test_what_was_sound_for_one_says_nothing_of_another_kind(catalogue: Catalogue, wrong: dict[str, Any]) -> None:
    catalogue.validate(launch(who="world", often=1))
    with pytest.raises(InvalidParameter):
        catalogue.validate(launch(**json.loads(json.dumps(wrong))))
