"""The application of one project instance: built here from settings, with nothing done at import."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import bbpwf
from bbpwf.clock import Clock, SystemClock
from bbpwf.cluster.consents import Consents
from bbpwf.cluster.control import AgentControl
from bbpwf.cluster.database import Database, open_database
from bbpwf.cluster.explanation import Explanations
from bbpwf.cluster.figures import LedgerFigures
from bbpwf.cluster.notices import NoticeStore
from bbpwf.cluster.quota import Quota
from bbpwf.cluster.runs import RunStore
from bbpwf.errors import Conflict, InvalidConfig, InvalidInput
from bbpwf.platform.login import Login
from bbpwf.platform.tokens import TokenVerifier
from bbpwf.redact import Redactor
from bbpwf.settings import Settings
from bbpwf.workflow.guarded import url_with_pass
from service import browser, consent, dashboard, errors, explain, launch, openapi, runs, tasks, wes
from service.access import BodyLimit, Gate
from service.authority import ProjectAuthority
from service.catalogue import Catalogue
from service.children import Lock
from service.containment import Containment
from service.daemons import agent_daemon, scheduler_daemon
from service.gateway.passes import PassChecker
from service.heads import SPARE_FOR_S, RunFolder, Spare
from service.health import Readiness
from service.idle import IdleStop, Noted, Use
from service.launches import Launches
from service.metrics import Measured, Metrics, Scraped
from service.metrics import router as metrics_router
from service.notices import Notices, Notifier
from service.outbound import Outbound
from service.ports import free_port
from service.supervisor import Supervisor
from service.underway import Surroundings
from service.uploads import KEPT_S, Uploads

CLUSTER_SLACK_S = 600.0
"""The agent gives up on a cluster by itself; a run that still waits this much later is ended all the same."""


@dataclass
class Instance:
    """Everything that one running instance consists of; see :func:`create_app`."""

    settings: Settings
    redactor: Redactor
    clock: Clock
    database: Database
    store: RunStore
    uploads: Uploads
    catalogue: Catalogue
    control: AgentControl
    supervisor: Supervisor
    launches: Launches
    folder_of: Callable[[str], RunFolder]
    containment: Containment
    scheduler_url: str
    scheduler_key: str
    readiness: Readiness
    metrics: Metrics
    notifier: Notifier
    use: Use
    idle: IdleStop
    held: list[Lock] = field(default_factory=list)
    scraped: list[Scraped] = field(default_factory=list)


def create_app(
    settings: Settings,
    *,
    redactor: Redactor | None = None,
    clock: Clock | None = None,
    agent_argv: Sequence[str] = (sys.executable, "-P", "-m", "bbpwf.cli.main", "agent", "--until-stdin-closes"),
    agent_env: Mapping[str, str] | None = None,
) -> FastAPI:
    """The service of one Virtual Lab Project. Its processes start and end with the application's lifespan.

    Args:
        settings: the instance's.
        redactor: knows the secrets of this process.
        clock: for tests.
        agent_argv: how to start the cluster agent.
        agent_env: the agent's environment; this process's own if ``None``, since the agent reads the same settings.

    Raises:
        InvalidConfig: there is no identity provider, or no project.
    """
    if not settings.project.virtual_lab_id or not settings.project.project_id:
        raise InvalidConfig("the service needs a project", hint="Set BBPWF_PROJECT__VIRTUAL_LAB_ID and …PROJECT_ID.")
    instance = _build(
        settings,
        redactor or Redactor(),
        clock or SystemClock(),
        agent_argv,
        dict(os.environ) if agent_env is None else dict(agent_env),
    )
    authority = ProjectAuthority(TokenVerifier(settings.oidc, instance.clock), settings.project, instance.clock)
    login = Login(settings.oidc, instance.clock, redactor=instance.redactor)
    offline = consent.OfflineLogins(
        Consents(instance.database, settings.oidc.offline_keys, instance.clock),
        instance.store,
        authority,
        lambda client: Login(settings.oidc, instance.clock, client_id=client, redactor=instance.redactor),
        frozenset({settings.oidc.client_id, settings.oidc.cli_client_id}),
        instance.launches.resume,
    )
    sessions = browser.BrowserSessions(login, authority, settings.service, instance.clock, offline)
    luigi = dashboard.Dashboard(instance.scheduler_url, instance.scheduler_key)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        _begin(instance)
        try:
            yield
        finally:
            await luigi.close()
            await run_in_threadpool(_end, instance)

    app = FastAPI(
        title="bbpwf",
        version=bbpwf.__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
        middleware=[
            Middleware(Measured, metrics=instance.metrics),
            Middleware(Noted, use=instance.use),
            Middleware(_Headers),
            Middleware(
                Gate,
                authority=authority,
                sessions=sessions,
                project=settings.project,
                redactor=instance.redactor,
                passes=PassChecker(settings.service.pass_keys, instance.clock) if settings.service.pass_keys else None,
            ),
            Middleware(BodyLimit, limit=settings.service.max_upload_mb * 1024 * 1024),
        ],
    )
    errors.install(app, instance.redactor, instance.metrics.failed)
    app.include_router(wes.router(wes.Wes(settings, instance.store, instance.launches)))  # first, for it is asked most
    app.include_router(launch.liveness())
    app.include_router(metrics_router(instance.metrics, instance.readiness))
    app.include_router(browser.router(sessions))
    app.include_router(consent.router(offline))
    app.include_router(launch.router(instance.launches, settings.project))
    app.include_router(tasks.router(instance.catalogue))
    folders = settings.state / "runs"
    app.include_router(runs.router(instance.store, instance.launches, instance.control, instance.redactor, folders))
    explanations = Explanations(instance.database)
    app.include_router(explain.router(instance.store, explanations, instance.control, instance.redactor))
    app.include_router(dashboard.router(luigi))
    openapi.install(app)
    app.state.instance = instance
    return app


def _build(
    settings: Settings, redactor: Redactor, clock: Clock, agent_argv: Sequence[str], agent_env: Mapping[str, str]
) -> Instance:
    state = settings.state
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    notify = settings.notify
    for secret in (
        settings.oidc.client_secret,
        *settings.oidc.offline_keys,
        notify.webhook_key,
        notify.smtp_password,
    ):
        if secret is not None:
            redactor.add(secret.get_secret_value())
    database = open_database(settings.database)
    outbound = Outbound(settings.outbound)
    notices = Notices(notify, outbound)
    quota = Quota(settings.service.max_queued, settings.service.max_queued_per_user)
    store = RunStore(database, clock, notices.targets, quota)
    uploads = Uploads(state / "uploads", largest=settings.service.max_upload_mb * 1024 * 1024)
    port = settings.service.scheduler_port or free_port()
    containment = Containment(settings, port)
    catalogue = Catalogue(settings, uploads, containment, clock)
    control = AgentControl(state / "agent.sock")

    use = Use(clock)
    spare = Spare(settings, containment, redactor, clock, lambda: use.within(SPARE_FOR_S))

    def folder_of(run_id: str) -> RunFolder:
        return RunFolder(settings, uploads, containment, spare, run_id)

    scheduler_url, scheduler_key = f"http://127.0.0.1:{port}", secrets.token_urlsafe(32)
    redactor.add(scheduler_key)
    plain_env = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": str(state)}
    scheduler = scheduler_daemon(port, key=scheduler_key, env=plain_env, state=state, redactor=redactor, clock=clock)
    supervisor = Supervisor(
        Surroundings(
            store=store,
            control=control,
            agent=agent_daemon(agent_argv, env=agent_env, state=state, control=control, redactor=redactor, clock=clock),
            scheduler=scheduler,
            folder_of=folder_of,
            spare=spare,
            redactor=redactor,
            clock=clock,
            max_runs=settings.service.max_runs,
            max_runs_per_user=settings.service.max_runs_per_user,
            scheduler_url=lambda run_id: url_with_pass(scheduler_url, scheduler_key, run_id),
            cluster_limit_s=settings.provisioner.deadline_s + CLUSTER_SLACK_S,
            public_url=settings.service.public_url or f"http://{settings.service.host}:{settings.service.port}",
        )
    )
    told = NoticeStore(database, clock)
    launches = Launches(store, uploads, catalogue, supervisor, folder_of, notices, outbound)
    readiness = Readiness(settings, store, control, supervisor, containment, clock)
    return Instance(
        settings,
        redactor,
        clock,
        database,
        store,
        uploads,
        catalogue,
        control,
        supervisor,
        launches,
        folder_of,
        containment,
        scheduler_url,
        scheduler_key,
        readiness,
        Metrics(store, LedgerFigures(database, clock), readiness),
        Notifier(notify, outbound, store, told, redactor, clock),
        use,
        IdleStop(settings.service.idle_minutes * 60, use, store, told, control, _stop_this_process),
    )


def _stop_this_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def hold(instance: Instance) -> None:
    """Claim the state folder for this process, and find out how well user code can be contained.

    Raises:
        Conflict: another service runs on it.
        InvalidConfig: user code cannot be contained as well as the settings require.
    """
    if instance.held:
        return
    path = instance.settings.state / "locks" / "service"
    try:
        instance.held.append(Lock(path))
    except Conflict:
        raise Conflict(
            "another service runs on this state folder",
            where=str(instance.settings.state),
            hint="End it, or set BBPWF_STATE_DIR to another folder.",
        ) from None
    instance.containment.prepare()


def _begin(instance: Instance) -> None:
    hold(instance)
    for run in instance.store.unfinished():  # a launch that a crash cut short after its run was made
        with contextlib.suppress(InvalidInput):  # told when its turn comes
            instance.folder_of(run.run_id).attach(run)
    instance.uploads.forget(older_than=KEPT_S)
    instance.supervisor.start()
    instance.notifier.start()
    instance.idle.start()
    if port := instance.settings.service.metrics_port:
        instance.scraped.append(Scraped(instance.metrics, instance.settings.service.metrics_host, port))


def _end(instance: Instance) -> None:
    instance.idle.end()
    while instance.scraped:
        instance.scraped.pop().close()
    instance.supervisor.stop()
    instance.notifier.stop()
    instance.database.close()
    while instance.held:
        instance.held.pop().close()


class _Headers:
    """ASGI middleware: headers that keep browsers from guessing, framing or telling where they came from."""

    _ALWAYS = (
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"referrer-policy", b"same-origin"),
    )

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *self._ALWAYS]
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)
