"""``/metrics`` for Prometheus, and ``/readyz``. ``docs/operations.md`` says what each name means, and what to do.

Most figures are looked up when they are asked for: the database and the agent know them anyway, and a restart of this
process loses none.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator

from fastapi import APIRouter
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import bbpwf
from bbpwf.cluster.figures import WAIT_BUCKETS, LedgerFigures
from bbpwf.cluster.meters import AgentMeters
from bbpwf.cluster.runs import RunStore
from bbpwf.errors import LedgerError
from bbpwf.log import about
from service.health import PARTS, Readiness

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_RUN = re.compile(r"/runs/([A-Za-z0-9._-]{1,64})(?:/|\Z)")
_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


class Metrics:
    """The registry of one instance, with what is counted as it happens."""

    def __init__(self, store: RunStore, figures: LedgerFigures, readiness: Readiness) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # it is untyped; it keeps a figure from having two
        self.registry = CollectorRegistry()
        ProcessCollector(namespace="bbpwf", registry=self.registry)
        self._requests = Histogram(
            "bbpwf_http_request_seconds",
            "Time to the first byte of an answer, by class of its status.",
            ["status"],
            buckets=_LATENCY,
            registry=self.registry,
        )
        self._errors = Counter(
            "bbpwf_errors_total", "Errors that were answered, by kind.", ["kind"], registry=self.registry
        )
        self._by_class = {number: self._requests.labels(f"{number}xx") for number in range(1, 6)}
        self.registry.register(_Instance(store, figures, readiness))

    def answered(self, status: int, seconds: float) -> None:
        """A request was answered."""
        self._by_class[min(5, max(1, status // 100))].observe(seconds)

    def failed(self, kind: str) -> None:
        """An error was answered; ``kind`` is its class."""
        self._errors.labels(kind).inc()

    def page(self) -> bytes:
        """What Prometheus reads. Blocks: use a worker thread."""
        return generate_latest(self.registry)


class _Instance(Collector):
    """Figures that the database, the agent and the operating system know."""

    def __init__(self, store: RunStore, figures: LedgerFigures, readiness: Readiness) -> None:
        self._store = store
        self._figures = figures
        self._readiness = readiness

    def describe(self) -> list[Metric]:
        """Nothing: names are known when they are asked for, and asking is not free."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Everything there is to know now; what cannot be known is left out, and its part is told as failing."""
        health = self._readiness.look()
        yield _gauge("bbpwf_build_info", "Always 1; labels say what runs.", {"version": bbpwf.__version__}, 1)
        up = GaugeMetricFamily("bbpwf_part_up", "Whether a part of the instance works, 0 or 1.", labels=["part"])
        for part in PARTS:
            up.add_metric([part], 0 if part in health.failing else 1)
        yield up
        if "database" not in health.failing:
            with contextlib.suppress(LedgerError):  # it fails since
                yield from self._of_database(health.meters)
        if health.meters is not None:
            yield from _of_agent(health.meters)

    def _of_database(self, meters: AgentMeters | None) -> Iterator[Metric]:
        runs = GaugeMetricFamily("bbpwf_runs", "Runs by state.", labels=["state"])
        for state, count in self._store.counts().items():
            runs.add_metric([state.value], count)
        yield runs
        found = self._figures.look(archiving=meters.runs_archiving if meters else ())
        jobs = GaugeMetricFamily("bbpwf_jobs", "Jobs by state.", labels=["state"])
        for job_state, count in found.jobs.items():
            jobs.add_metric([job_state.value], count)
        yield jobs
        waits = [(f"{edge:g}", count) for edge, count in zip(WAIT_BUCKETS, found.waited, strict=True)]
        yield HistogramMetricFamily(
            "bbpwf_job_queue_wait_seconds",
            "From a job's submission to its beginning, of all jobs that began.",
            buckets=[*waits, ("+Inf", found.began)],
            sum_value=found.waited_s,
        )
        yield _gauge("bbpwf_oldest_queued_run_seconds", "Age of the oldest run that is QUEUED.", {}, found.oldest_run_s)
        yield _gauge(
            "bbpwf_oldest_queued_job_seconds", "How long the job has waited that waits longest.", {}, found.oldest_job_s
        )
        yield _gauge(
            "bbpwf_nexus_lag_seconds",
            "Longest time that a run with all its jobs ended, and nothing being archived, has not been registered.",
            {},
            found.unregistered_s,
        )


def _of_agent(meters: AgentMeters) -> Iterator[Metric]:
    connected = GaugeMetricFamily("bbpwf_ssh_connected", "Whether a cluster's connection stands.", labels=["cluster"])
    logins = CounterMetricFamily(
        "bbpwf_ssh_reconnects_total", "Logins beyond the first since the agent started.", labels=["cluster"]
    )
    trips = CounterMetricFamily("bbpwf_ssh_round_trips_total", "Commands sent over SSH.", labels=["cluster"])
    calls = CounterMetricFamily(
        "bbpwf_scheduler_calls_total", "Commands of the scheduler's that were run.", labels=["cluster", "command"]
    )
    busy = CounterMetricFamily(
        "bbpwf_scheduler_seconds_total",
        "How long they took; of queue queries, a tenth of the time is all that is ever used.",
        labels=["cluster", "command"],
    )
    for name, cluster in meters.clusters.items():
        if cluster.ssh:
            connected.add_metric([name], int(cluster.connected))
            logins.add_metric([name], max(0, cluster.logins - 1))
            trips.add_metric([name], cluster.round_trips)
        for command, count in cluster.calls.items():
            calls.add_metric([name, command], count)
        for command, seconds in cluster.seconds.items():
            busy.add_metric([name, command], seconds)
    yield from (connected, logins, trips, calls, busy)
    yield _gauge("bbpwf_hsm_archiving", "Archivings under way.", {}, meters.archives)
    yield _gauge("bbpwf_hsm_lag_seconds", "How long the oldest of them has taken.", {}, meters.oldest_archive_s)
    failures = CounterMetricFamily("bbpwf_hsm_failures_total", "Archivings that failed since the agent started.")
    failures.add_metric([], meters.archives_failed)
    yield failures


def _gauge(name: str, words: str, labels: dict[str, str], value: float) -> Metric:
    family = GaugeMetricFamily(name, words, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


class Measured:
    """ASGI middleware that counts and times answers; around everything else."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def timed(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.answered(message["status"], time.perf_counter() - began)
            await send(message)

        run = _RUN.search(scope["path"])
        if run is None:
            await self._app(scope, receive, timed)
            return
        with about(run_id=run[1]):
            await self._app(scope, receive, timed)


class Scraped:
    """A port of its own for ``/metrics``, for a Prometheus that has no token. Whoever reaches it may read."""

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        self._server, self._thread = start_http_server(port, host, metrics.registry)

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10.0)


def router(metrics: Metrics, readiness: Readiness) -> APIRouter:
    """``/metrics`` for members of the project, ``/readyz`` for anybody."""
    routes = APIRouter(tags=["operations"])

    @routes.get("/metrics", response_class=Response)
    async def page() -> Response:
        """The instance in numbers, as Prometheus reads them."""
        return Response(await run_in_threadpool(metrics.page), media_type=CONTENT_TYPE)

    @routes.get("/readyz", responses={503: {"description": "A part of the instance itself fails."}})
    async def readyz() -> Response:
        """Which parts fail, by name: 200 if the instance can take launches, else 503."""
        health = await run_in_threadpool(readiness.look)
        status = 503 if health.status == "not ready" else 200
        headers = {"Retry-After": "5"} if status == 503 else {}
        return JSONResponse(health.body(), status, headers)

    return routes
