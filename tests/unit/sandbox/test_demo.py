"""What the demo sends and how it tells what it sees."""

from __future__ import annotations

import configparser
import json
from pathlib import Path
from typing import Any

import pytest

from sandbox import demo_report
from sandbox.demo import CONFIG, campaign_config
from sandbox.state import SandboxError


def parsed(text: str) -> configparser.ConfigParser:
    config = configparser.ConfigParser(interpolation=None)
    config.read_string(text)
    return config


def test_the_campaign_that_is_shipped_has_24_points_and_gets_a_name_of_its_own() -> None:
    text, expected = campaign_config(CONFIG, "demo-1", None)
    assert expected == 24
    sent, shipped = parsed(text), parsed(CONFIG.read_text())
    assert sent["GenerateCampaign"]["name"] == "demo-1"
    assert "fail-point" not in sent["GenerateCampaign"]
    assert sent.sections() == shipped.sections()
    assert json.loads(sent["GenerateCampaign"]["coords"]) == json.loads(shipped["GenerateCampaign"]["coords"])


def test_a_point_can_be_made_to_fail() -> None:
    text, _ = campaign_config(CONFIG, "demo-1", 23)
    assert parsed(text)["GenerateCampaign"]["fail-point"] == "23"


@pytest.mark.parametrize("point", [-1, 24])
def test_a_point_that_does_not_exist_is_refused(point: int) -> None:
    with pytest.raises(SandboxError, match="0 to 23"):
        campaign_config(CONFIG, "demo-1", point)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "coords: {}",
        "[GenerateCampaign]\nname: a",
        "[GenerateCampaign]\ncoords: {",
        "[GenerateCampaign]\ncoords: [1]",
    ],
)
def test_a_config_that_is_not_a_campaigns_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.cfg"
    path.write_text(text)
    with pytest.raises(SandboxError, match=r"other\.cfg"):
        campaign_config(path, "demo-1", None)


def task(task_id: str, state: str, **more: Any) -> dict[str, Any]:
    return {"id": task_id, "name": task_id.partition(".")[0], "system_logs": [state], **more}


def test_elements_are_counted_with_their_task_and_tasks_stand_in_their_order() -> None:
    begun = {"start_time": "2026-01-01T00:00:05Z"}
    seen = demo_report.seen(
        [
            task("Report", "QUEUED"),
            task("Run", "RUNNING", **begun),
            task("Run.0", "COMPLETE"),
            task("Run.1", "COMPLETE"),
            task("Run.2", "EXECUTOR_ERROR"),
            task("Generate", "COMPLETE", start_time="2026-01-01T00:00:01Z", end_time="2026-01-01T00:00:04Z"),
            task("Circuit", "COMPLETE"),
        ]
    )
    assert [each.name for each in seen] == ["Circuit", "Generate", "Run", "Report"]
    assert seen[1].seconds == 3.0
    assert seen[2].elements == {"COMPLETE": 2, "EXECUTOR_ERROR": 1}


def test_without_a_terminal_only_changes_are_told() -> None:
    known: dict[str, str] = {}
    run = {"state": "RUNNING"}
    first = demo_report.seen([task("Run", "RUNNING"), task("Run.0", "RUNNING"), task("Run.1", "RUNNING")])
    assert demo_report.changes(known, run, first) == ["run: RUNNING", "Run: RUNNING (0 of 2 complete, 2 running)"]
    assert demo_report.changes(known, run, first) == []
    later = demo_report.seen([task("Run", "RUNNING"), task("Run.0", "COMPLETE"), task("Run.1", "RUNNING")])
    assert demo_report.changes(known, run, later) == ["Run: RUNNING (1 of 2 complete, 1 running)"]


def test_results_are_found_by_the_campaigns_name(tmp_path: Path) -> None:
    assert demo_report.read_results(tmp_path, "demo-1") is None
    folder = tmp_path / "demo-1-abc" / "report"
    folder.mkdir(parents=True)
    found = demo_report.read_results(tmp_path, "demo-1")
    assert found is not None
    assert (found.report, found.publication, found.complete) == ({}, {}, 0)
    (folder / "report.json").write_text(json.dumps({"points": [{"state": "complete"}, {"state": "missing"}]}))
    found = demo_report.read_results(tmp_path, "demo-1")
    assert found is not None
    assert found.complete == 1
    (folder / "report.json").write_text("{")
    with pytest.raises(SandboxError, match=r"report\.json"):
        demo_report.read_results(tmp_path, "demo-1")
