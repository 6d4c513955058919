"""A small campaign from its parameters to the knowledge graph: real simulations, real HTTP, real archive double."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from luigi.task_register import Register

from bbpwf.clock import SystemClock
from bbpwf.cluster.jobs import Archived, ClusterInfo
from bbpwf.data.archive import ArchiveLimits, ArchiveLocation, Archiver
from bbpwf.data.s3 import ObjectStore
from bbpwf.errors import InvalidConfig
from bbpwf.settings import AwsSettings
from bbpwf.workflow.building import build
from bbpwf.workflow.config import luigi_config
from bbpwf.workflow.context import RunContext, activated
from bbpwf.workflow.request import HeadRequest, NexusRef, Outcome
from bbpwf.workflow.runner import run_local
from tasks.simulation import PublishCampaign
from tests.integration.data.conftest import SCRATCH_BUCKET, Bucket, Nexus, Realm, Shared
from tests.integration.data.conftest import aws as aws
from tests.integration.data.conftest import nexus as nexus
from tests.integration.data.conftest import nexus_process as nexus_process
from tests.integration.data.conftest import realm as realm
from tests.integration.data.conftest import s3 as s3
from tests.integration.data.conftest import shared as shared
from tests.integration.simulation.conftest import Lab, Software
from tests.support.agent import MemoryAgent

COORDS = {"stimulus_amplitude": [0.1, 0.5], "seed": [1, 2]}
ATTRS = {"duration": 200, "stimulus_delay": 50, "stimulus_duration": 120}

PICTURE = """
import json, sys
from matplotlib import image
pixels = image.imread(sys.argv[1])
print(json.dumps({"shape": pixels.shape, "blue": int(((pixels[..., 2] - pixels[..., 0]) > 0.3).sum()),
                  "red": int(((pixels[..., 0] - pixels[..., 2]) > 0.3).sum())}))
"""


class PlatformAgent(MemoryAgent):
    """An agent whose cluster may have Lustre, and whose user has a token."""

    archiver: Archiver | None = None
    token = ""

    def cluster(self, name: str = "default") -> ClusterInfo:
        return super().cluster(name).model_copy(update={"lustre": self.archiver is not None})

    def archive(self, paths: Sequence[str], *, cluster: str = "default", timeout: float = 3600.0) -> list[Archived]:
        assert self.archiver is not None
        return self.archiver.archive(paths, timeout=timeout)

    def access_token(self) -> str:
        return self.token


@dataclass
class Site:
    """A cluster's disk on which runs follow one another."""

    disk: Path
    cfg: Path
    stack: ExitStack

    def agent(self, run_id: str) -> PlatformAgent:
        made = PlatformAgent(self.disk, run_id, slots=2)
        self.stack.callback(made.close)
        return made

    def request(self, run_id: str, task: str, nexus: NexusRef | None = None, **params: Any) -> HeadRequest:
        values = {"coords": COORDS, "attrs": ATTRS} | params
        return HeadRequest(
            run_id=run_id,
            module="tasks.simulation",
            task=task,
            params=values,
            config=str(self.cfg),
            nexus=nexus or NexusRef(),
        )

    def run(self, agent: PlatformAgent, task: str, **params: Any) -> Outcome:
        return run_local(agent, self.request(agent.run_id, task, **params))

    def publish(self, agent: PlatformAgent, nexus: NexusRef) -> dict[str, Any]:
        """Run PublishCampaign by itself, in this process; answers what it wrote down."""
        Register.clear_instance_cache()
        context = RunContext(agent, self.request(agent.run_id, "PublishCampaign", nexus))
        context.jobs.update(agent.views())
        with luigi_config(self.cfg), activated(context):
            task: Any = build(PublishCampaign, context.request.params)
            task.run()
            assert task.output().exists()
            if nexus.url:
                context.nexus().close()
            found: dict[str, Any] = json.loads(task.output().read_text())
            return found

    @property
    def folder(self) -> Path:
        (found,) = (self.disk / "campaigns").iterdir()
        return found


@pytest.fixture
def site_on(software: Software, tmp_path: Path) -> Iterator[Callable[[Path], Site]]:
    with ExitStack() as stack:

        def make(disk: Path) -> Site:
            cfg = tmp_path / "campaign.cfg"
            cfg.write_text(f"[DEFAULT]\nsoftware: {software.folder}\n")
            return Site(disk, cfg, stack)

        yield make
    Register.clear_instance_cache()


@pytest.fixture
def site(site_on: Callable[[Path], Site], tmp_path: Path) -> Site:
    return site_on(tmp_path / "disk")


def labels_run(agent: PlatformAgent) -> list[str]:
    return sorted(view.label for view in agent.views())


def test_a_campaign_fails_at_one_point_and_a_relaunch_runs_that_one_alone(site: Site, lab: Lab) -> None:
    first = site.agent("r1")
    outcome = site.run(first, "SimulationCampaign", publish=False, fail_point=2)
    assert outcome.state == "EXECUTOR_ERROR"
    (failure,) = outcome.failed
    assert (failure.label, failure.exit_code) == ("2: stimulus_amplitude=0.5 seed=1", 17)
    assert "fault drill: simulation 2 fails on purpose" in failure.log_tail
    assert len(labels_run(first)) == 1 + 4  # circuit and simulations, no report

    second = site.agent("r2")
    assert site.run(second, "SimulationCampaign", publish=False).state == "COMPLETE"
    assert labels_run(second) == ["2: stimulus_amplitude=0.5 seed=1", "ReportCampaign"]
    third = site.agent("r3")
    assert site.run(third, "SimulationCampaign", publish=False).state == "COMPLETE"
    assert labels_run(third) == []

    report = json.loads((site.folder / "report" / "report.json").read_text())
    assert [point["state"] for point in report["points"]] == ["complete"] * 4
    rates = [point["rate_hz"] for point in report["points"]]
    assert max(rates[:2]) < min(rates[2:])  # the stronger stimulus comes second
    for point in report["points"]:
        assert point["spikes"] == round(point["rate_hz"] * point["cells"] * point["duration_ms"] / 1000)
        by_hand = lab.folder / str(point["index"])
        by_hand.mkdir()
        config = site.folder / str(point["index"]) / "simulation_config.json"
        (by_hand / config.name).write_bytes(config.read_bytes())
        lab.software.program("simulate", "--config", str(by_hand / config.name))
        spikes = lab.spikes(by_hand / "output" / "out.h5")
        assert spikes == lab.spikes(config.parent / "output" / "out.h5")
        assert len(spikes) == point["spikes"]

    for name in ("raster.png", "voltage.png"):
        picture = lab.software.ask(PICTURE, str(site.folder / "report" / name))
        assert min(picture["shape"][:2]) > 300
        assert picture["blue"] > 500  # excitatory cells and inhibitory ones are both to be seen
        assert picture["red"] > 300


def test_a_resumed_drill_passes(site: Site) -> None:
    agent = site.agent("r1")
    params = {"publish": False, "fail_point": 0, "coords": {"seed": [1]}}
    assert site.run(agent, "SimulationCampaign", **params).state == "EXECUTOR_ERROR"
    agent.resume()
    assert site.run(agent, "SimulationCampaign", **params).state == "COMPLETE"
    (simulated,) = (view for view in agent.views() if view.index is not None)
    assert simulated.attempt == 2


def check_graph(nexus: Nexus, token: str, publication: dict[str, Any], agent: PlatformAgent) -> dict[str, list[Any]]:
    """Every resource is in Nexus, and they point to one another as they should."""
    with_token = RunContext(agent, HeadRequest(run_id="x", module="m", task="T", nexus=reference(nexus)))
    client = with_token.nexus()
    found: dict[str, list[Any]] = {}
    for each in publication["resources"]:
        resource = client.fetch(each["id"])
        assert resource is not None
        assert resource.self_url == each["url"]
        found.setdefault(each["type"], []).append(resource)
    client.close()
    (execution,) = found["WorkflowExecution"]
    (campaign,) = found["SimulationCampaign"]
    (activity,) = found["Activity"]
    assert execution.body["status"] == "Done"
    assert execution.body["endedAtTime"] >= execution.body["startedAtTime"]
    assert campaign.body["parameter"]["coords"] == COORDS
    assert activity.body["wasInfluencedBy"]["@id"] == execution.id
    assert [each["@id"] for each in activity.body["generated"]] == [
        campaign.id,
        *(each.id for each in found["Simulation"]),
    ]
    for index, simulation in enumerate(found["Simulation"]):
        assert simulation.body["isPartOf"]["@id"] == campaign.id
        assert simulation.body["wasInfluencedBy"]["@id"] == execution.id
        assert simulation.body["startedAtTime"] < simulation.body["endedAtTime"]
        assert [each["name"] for each in simulation.body["distribution"]] == [
            f"{index}/simulation_config.json",
            f"{index}/output/out.h5",
            f"{index}/output/soma.h5",
        ]
    return found


def reference(nexus: Nexus, **more: Any) -> NexusRef:
    settings = nexus.settings(**more)
    return NexusRef(url=str(settings.url), org=settings.org, project=settings.project, storage_id=settings.storage_id)


def check_files(publication: dict[str, Any]) -> None:
    """Each file's size and digest are those of what lies on the cluster."""
    names = {each["name"] for each in publication["files"]}
    assert {"campaign.json", "report/raster.png", "circuit/nodes.h5", "3/output/out.h5"} <= names
    for each in publication["files"]:
        content = Path(each["path"]).read_bytes()
        assert (each["size"], each["sha256"]) == (len(content), hashlib.sha256(content).hexdigest()), each["name"]


def test_without_lustre_results_are_uploaded_and_registered_once(site: Site, nexus: Nexus, realm: Realm) -> None:
    agent = site.agent("r1")
    agent.token = realm.token("alice").get_secret_value()
    assert site.run(agent, "ReportCampaign").state == "COMPLETE"
    publication = site.publish(agent, reference(nexus))
    assert publication["how"] == "upload"
    check_files(publication)
    assert all(each["content_url"].startswith(nexus.base) for each in publication["files"])
    found = check_graph(nexus, agent.token, publication, agent)
    assert len(found["Simulation"]) == 4

    before = {each["id"]: each["rev"] for each in publication["resources"] if each["type"] != "WorkflowExecution"}
    again = site.publish(agent, reference(nexus))
    after = {each["id"]: each["rev"] for each in again["resources"] if each["type"] != "WorkflowExecution"}
    assert after.keys() == before.keys()
    assert [after[each["id"]] for each in again["resources"] if each["type"] == "Simulation"] == [1] * 4
    assert [each["content_url"] for each in again["files"]] == [each["content_url"] for each in publication["files"]]


def test_with_lustre_results_are_archived_confirmed_and_registered(
    site_on: Callable[[Path], Site], nexus: Nexus, realm: Realm, shared: Shared, aws: AwsSettings, s3: Bucket
) -> None:
    site = site_on(shared.root)
    agent = site.agent("r1")
    agent.token = realm.token("alice").get_secret_value()
    limits = ArchiveLimits(poll_first_s=0.05, poll_longest_s=0.2, object_grace_s=5)
    location = ArchiveLocation(SCRATCH_BUCKET, shared.prefix, str(shared.root))
    agent.archiver = Archiver(shared, ObjectStore(aws), location, clock=SystemClock(), privileged=True, limits=limits)
    assert site.run(agent, "ReportCampaign").state == "COMPLETE"
    publication = site.publish(agent, reference(nexus))
    assert publication["how"] == "archive"
    check_files(publication)
    for each in publication["files"]:
        bucket, _, key = each["url"].removeprefix("s3://").partition("/")
        assert bucket == SCRATCH_BUCKET
        assert s3.get(bucket, key) == Path(each["path"]).read_bytes()
    found = check_graph(nexus, agent.token, publication, agent)
    (spikes,) = (d for d in found["Simulation"][0].body["distribution"] if d["name"] == "0/output/out.h5")
    (listed,) = (each for each in publication["files"] if each["name"] == "0/output/out.h5")
    assert spikes["url"] == listed["url"]
    assert spikes["digest"]["value"] == listed["sha256"]


def test_with_nowhere_to_publish_to_that_is_what_is_said(site: Site) -> None:
    with pytest.raises(InvalidConfig, match="nowhere to publish to: the cluster has no archive"):
        site.publish(site.agent("r1"), NexusRef())
