"""Bringing a campaign's results home, and telling the knowledge graph about them."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import luigi

import bbpwf
from bbpwf.cluster.api import READ_LIMIT, RunAgent
from bbpwf.cluster.jobs import Archived, JobView
from bbpwf.data.nexus import Content
from bbpwf.data.registrar import (
    Activity,
    Campaign,
    Distribution,
    Execution,
    NexusRegistrar,
    Reference,
    Registrar,
    Simulation,
    Span,
    Status,
)
from bbpwf.errors import ArchiveError, DataError, InvalidConfig
from bbpwf.workflow import RemoteTarget, current
from tasks.simulation import circuits, programs, reporting
from tasks.simulation.campaign import CAMPAIGN, CONFIG, Point
from tasks.simulation.parameters import CampaignParameters
from tasks.simulation.reporting import ReportCampaign
from tasks.simulation.run import RunCampaign

PUBLICATION = "publication.json"


@dataclass(frozen=True)
class ResultFile:
    """A file to publish: its path on the cluster, its name within the campaign, and the simulation it belongs to."""

    path: str
    name: str
    point: int | None = None
    required: bool = True


class PublishCampaign(CampaignParameters, luigi.Task):
    """Archive the results, or upload them, and register campaign, simulations and activity with their provenance.

    Where the cluster has Lustre, every file is archived and confirmed in its bucket; where it has none, files are
    uploaded to Nexus. ``<campaign>/publication.json`` then lists ``files`` (name, path, url, size, sha256) and
    ``resources`` (type, id, url, rev, name). Doing it again brings the same resources up to date.
    """

    archive_timeout = luigi.IntParameter(
        default=3600, significant=False, positional=False, description="Seconds for all files to be in the archive."
    )

    def requires(self) -> ReportCampaign:
        """Simulations and report."""
        return ReportCampaign(**self.campaign_values())

    def output(self) -> RemoteTarget:
        """``publication.json``."""
        return self.target(PUBLICATION)

    def run(self) -> None:
        """Archive or upload, register, and write down what was done.

        Raises:
            InvalidConfig: there is neither an archive nor a Nexus.
            ArchiveError: a file could not be confirmed in the archive.
            NexusError: the knowledge graph refused or could not be reached.
        """
        context = current()
        lustre = context.cluster(self.cluster).lustre
        registrar = NexusRegistrar(context.nexus()) if context.request.nexus.url else None
        if registrar is None and not lustre:
            raise InvalidConfig(
                "there is nowhere to publish to: the cluster has no archive, and this instance no Nexus",
                hint="Set BBPWF_NEXUS__URL, or give publish=false.",
            )
        files = self._present(context.agent)
        archived: dict[str, Archived] = {}
        if lustre:
            archived = self._archive(context.agent, files)
        document: dict[str, Any] = {
            "campaign": self.campaign.folder_name,
            "run_id": context.run_id,
            "how": "archive" if lustre else "upload",
            "files": [],
            "resources": [],
        }
        distributions: dict[str, Distribution] = {}
        for done, (file, size) in enumerate(files.items()):
            if registrar is not None:
                distributions[file.path] = self._distribution(registrar, context.agent, file, size, archived)
            document["files"].append(_file_entry(file, size, archived, distributions))
            self._progress(f"{done + 1} of {len(files)} files", done + 1, 2 * len(files))
        if registrar is not None:
            document["resources"] = self._register(registrar, distributions)
        self.output().write_text(json.dumps(document, indent=1) + "\n")

    def on_failure(self, exception: BaseException) -> Any:
        """Luigi's: words, not a traceback."""
        return str(exception)

    # -- files

    def _files(self) -> Iterator[ResultFile]:
        folder = self.folder
        yield ResultFile(str(folder / CAMPAIGN), CAMPAIGN)
        for name in reporting.FILES:
            yield ResultFile(str(folder / "report" / name), f"report/{name}")
        if not self.simulator:
            path = programs.path("simulate", folder)
            yield ResultFile(path, f"programs/{posixpath.basename(path)}", required=False)
        if self.circuit_task:
            home = posixpath.dirname(self.circuit_task.config)
            for name in circuits.FILES:
                yield ResultFile(f"{home}/{name}", f"circuit/{name}")
        for point in self.points:
            for name in (CONFIG, point.rendered.spikes):
                yield ResultFile(str(folder / point.path(name)), point.path(name), point.index)
            for name in point.rendered.reports:
                yield ResultFile(str(folder / point.path(name)), point.path(name), point.index, required=False)

    def _present(self, agent: RunAgent) -> dict[ResultFile, int]:
        """The files that are there, with their sizes in bytes.

        Raises:
            DataError: one that must be there is not.
        """
        wanted = list(self._files())
        stats = agent.stat([file.path for file in wanted], cluster=self.cluster)
        absent = [file.path for file, stat in zip(wanted, stats, strict=True) if stat is None and file.required]
        if absent:
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            raise DataError(f"{', '.join(absent[:5])}{more}: there is no such file to publish")
        return {file: stat.size for file, stat in zip(wanted, stats, strict=True) if stat is not None}

    def _archive(self, agent: RunAgent, files: dict[ResultFile, int]) -> dict[str, Archived]:
        self._progress(f"archiving {len(files)} files", 0, 1)
        paths = [file.path for file in files]
        found = {
            each.path: each for each in agent.archive(paths, cluster=self.cluster, timeout=float(self.archive_timeout))
        }
        lacking = [path for path in paths if path not in found]
        if lacking:
            raise ArchiveError(f"the archive was not confirmed for {', '.join(lacking[:5])}")
        return found

    def _distribution(
        self, registrar: Registrar, agent: RunAgent, file: ResultFile, size: int, archived: dict[str, Archived]
    ) -> Distribution:
        if file.path in archived:
            return registrar.archived(self._key, file.name, archived[file.path])
        content = Content(size, lambda: _chunks(agent, file.path, size, self.cluster))
        return registrar.upload(self._key, file.name, content)

    # -- resources

    @property
    def _key(self) -> str:
        """What the ids of the campaign's resources follow from: its folder, so that every run of it means the same."""
        return f"{self.cluster}:{self.folder}"

    def _register(self, registrar: Registrar, distributions: dict[str, Distribution]) -> list[dict[str, Any]]:
        """The execution first, for others point to it, and last, when its end is known."""
        context = current()
        request = context.request
        views = context.agent.observe(0).jobs
        times = [view.submitted_at for view in views if view.submitted_at is not None]
        began = min(times, default=context.clock.now())

        def execution(status: Status, ended: float | None) -> Reference:
            return registrar.execution(
                Execution(
                    run_id=context.run_id,
                    module=request.module,
                    task=request.task,
                    version=bbpwf.__version__,
                    status=status,
                    parameters=json.dumps(request.params, sort_keys=True),
                    config_file_name=Path(request.config).name if request.config else "",
                    output=str(self.folder),
                    span=Span(began, ended),
                )
            )

        running = execution(Status.RUNNING, None)
        of_point: dict[int | None, list[Distribution]] = {}
        for file in self._files():
            if file.path in distributions:
                of_point.setdefault(file.point, []).append(distributions[file.path])
        campaign = registrar.campaign(
            Campaign(
                run_id=self._key,
                name=self.name,
                description=self.description,
                coords={name: list(values) for name, values in self.coords.items()},
                attributes=dict(self.attrs),
                distributions=of_point.get(None, []),
            )
        )
        spans = _spans(views, RunCampaign(**self.campaign_values()).task_id)
        simulations = []
        for done, point in enumerate(self.points):
            simulations.append(
                registrar.simulation(
                    self._simulation(point, campaign, running, spans.get(point.index, Span()), of_point[point.index])
                )
            )
            self._progress(
                f"{done + 1} of {len(self.points)} simulations registered",
                len(self.points) + done + 1,
                2 * len(self.points),
            )
        ended = context.clock.now()
        activity = registrar.activity(
            Activity(
                run_id=context.run_id,
                label=self._key,
                name=f"Simulation campaign {self.name}",
                status=Status.DONE,
                span=Span(began, ended),
                used=[],
                generated=[campaign, *simulations],
                execution=running,
            )
        )
        finished = execution(Status.DONE, ended)
        named = [
            (finished, request.task),
            (activity, f"Simulation campaign {self.name}"),
            (campaign, self.name),
            *((simulation, point.label) for simulation, point in zip(simulations, self.points, strict=True)),
        ]
        return [
            {"type": each.type, "id": each.id, "url": each.url, "rev": each.rev, "name": name} for each, name in named
        ]

    def _simulation(
        self, point: Point, campaign: Reference, execution: Reference, span: Span, files: Sequence[Distribution]
    ) -> Simulation:
        return Simulation(
            run_id=self._key,
            label=str(point.index),
            name=f"{self.name} {point.label}",
            status=Status.DONE,
            campaign=campaign,
            parameters={
                name: int(value) if isinstance(value, bool) else value
                for name, value in {**point.coords, "random_seed": point.values.get("random_seed", "")}.items()
                if value != ""
            },
            span=span,
            distributions=files,
            execution=execution,
        )

    def _progress(self, words: str, done: int, total: int) -> None:
        """Tell Luigi's scheduler, if it listens."""
        say: Any = getattr(self, "set_status_message", None)
        count: Any = getattr(self, "set_progress_percentage", None)
        if say is not None:
            say(words)
        if count is not None:
            count(100 * done // max(1, total))


def _chunks(agent: RunAgent, path: str, size: int, cluster: str) -> Iterator[bytes]:
    """A file's content in pieces of at most 8 MiB.

    Raises:
        DataError: the file has become shorter than it was.
    """
    offset = 0
    while offset < size:
        piece = agent.read(path, cluster=cluster, offset=offset, limit=min(READ_LIMIT, size - offset))
        if not piece:
            raise DataError(f"{path} has become shorter while it was read")
        offset += len(piece)
        yield piece


def _spans(views: Sequence[JobView], task_id: str) -> dict[int, Span]:
    """When each simulation ran, as far as this run knows; one that an earlier run made is not in it."""
    return {
        view.index: Span(view.exit.started, view.exit.ended) if view.exit else Span(view.started_at, view.ended_at)
        for view in views
        if view.task_id == task_id and view.index is not None and view.state.succeeded
    }


def _file_entry(
    file: ResultFile, size: int, archived: dict[str, Archived], distributions: dict[str, Distribution]
) -> dict[str, Any]:
    """A file's part of ``publication.json``."""
    entry: dict[str, Any] = {"name": file.name, "path": file.path, "point": file.point, "size": size}
    known = distributions.get(file.path)
    entry["media_type"] = known.media_type if known else ""
    entry["content_url"] = known.content_url if known else ""
    if file.path in archived:
        there = archived[file.path]
        return {**entry, "size": there.size, "url": there.url, "sha256": there.sha256}
    sha256 = known.digest if known and known.algorithm.upper() == "SHA-256" else ""
    return {**entry, "url": known.url if known else "", "sha256": sha256}
