"""Builds the agent from settings: the one place where its parts meet."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import SecretStr

from bbpwf.clock import Clock
from bbpwf.cluster.agent import Agent, Archive
from bbpwf.cluster.connectors import LocalConnector, ProvisionedConnector, SshConnector
from bbpwf.cluster.consents import Consents
from bbpwf.cluster.database import open_database
from bbpwf.cluster.jobs import Archived
from bbpwf.cluster.ledger import Ledger
from bbpwf.cluster.runs import RunStore
from bbpwf.cluster.runtime import ClusterRuntime, Connected, Connector
from bbpwf.cluster.tokens import Renew, Renewed, ServiceLogin, Tokens
from bbpwf.redact import Redactor
from bbpwf.settings import ClusterSettings, Settings


def build_agent(settings: Settings, clock: Clock, redactor: Redactor, *, offer_local: bool = True) -> Agent:
    """The agent of these settings, with its ledger claimed. The caller starts and stops it.

    With ``offer_local``, tasks may name this machine as the cluster ``local``: their jobs run as this very user.

    Raises:
        LedgerError: the database cannot be used.
        InvalidConfig: settings of the cluster contradict each other.
    """
    database = open_database(settings.database)
    ledger = Ledger(database, clock)
    ledger.claim()
    cluster = effective_cluster(settings)
    runtimes = {
        "default": ClusterRuntime(
            "default",
            _connector(settings, cluster, clock, redactor),
            ledger,
            clock,
            cluster,
            spool=_spool(cluster, ledger),
        )
    }
    if offer_local and cluster.kind != "local":
        local = effective_cluster(settings.model_copy(update={"cluster": ClusterSettings(kind="local")}))
        runtimes["local"] = ClusterRuntime(
            "local", LocalConnector(local), ledger, clock, local, spool=_spool(local, ledger)
        )
    runs = RunStore(database, clock)
    tokens = Tokens(
        clock,
        redactor,
        service_login=_service_login(settings, clock, redactor),
        consents=Consents(database, settings.oidc.offline_keys, clock),
        renew=_renew(settings, clock, redactor),
        owner_of=lambda run_id: runs.get(run_id).owner.sub,
    )
    archive = _archive(settings, cluster, clock, runtimes["default"])
    return Agent(ledger, runs, runtimes, tokens, clock, archive)


def effective_cluster(settings: Settings) -> ClusterSettings:
    """The cluster's settings with what follows from others filled in: a local cluster keeps its data in the state."""
    cluster = settings.cluster
    update: dict[str, object] = {}
    if cluster.kind == "local" and cluster.data_root == ClusterSettings.model_fields["data_root"].default:
        update["data_root"] = str(settings.state / "data")
    if cluster.kind == "provisioned" and not cluster.partition:
        update["partition"] = settings.provisioner.tier  # the provisioner keeps one queue, named after the tier
    return cluster.model_copy(update=update)


def _spool(cluster: ClusterSettings, ledger: Ledger) -> str:
    return f"{cluster.spool_root or cluster.data_root + '/.bbpwf'}/{ledger.ledger_id}"


def _connector(settings: Settings, cluster: ClusterSettings, clock: Clock, redactor: Redactor) -> Connector:
    if cluster.kind == "local":
        return LocalConnector(cluster)
    known_hosts = settings.state / "known_hosts"
    if cluster.kind == "ssh":
        return SshConnector(cluster, clock, known_hosts=known_hosts)
    from bbpwf.platform.aws import ambient_credentials
    from bbpwf.platform.provisioner import ProvisionerClient
    from bbpwf.platform.provisioning import Provisioning
    from bbpwf.platform.secrets import SecretsManager

    client = ProvisionerClient(settings.provisioner, settings.project, credentials=ambient_credentials(), clock=clock)
    return ProvisionedConnector(
        cluster,
        lambda: Provisioning(client, settings.provisioner, clock),
        SecretsManager(settings.aws, redactor),
        clock,
        tier=settings.provisioner.tier,
        known_hosts=known_hosts,
    )


def _service_login(settings: Settings, clock: Clock, redactor: Redactor) -> ServiceLogin | None:
    if not settings.oidc.issuer or settings.oidc.client_secret is None:
        return None

    def login() -> tuple[SecretStr, float]:
        from bbpwf.platform.login import Login

        tokens = Login(settings.oidc, clock, redactor=redactor).client_credentials()
        return tokens.access, tokens.expires_at

    return login


def _renew(settings: Settings, clock: Clock, redactor: Redactor) -> Renew:
    def renew(client_id: str, token: SecretStr) -> Renewed:
        from bbpwf.platform.login import Login

        return Login(settings.oidc, clock, client_id=client_id, redactor=redactor).refresh(token)

    return renew


def _archive(settings: Settings, cluster: ClusterSettings, clock: Clock, runtime: ClusterRuntime) -> Archive | None:
    if not settings.s3.bucket:
        return None

    def run(connected: Connected, paths: Sequence[str], run_id: str, timeout: float) -> list[Archived]:
        from bbpwf.cluster.archiving import archive
        from bbpwf.data.archive import ArchiveLocation
        from bbpwf.data.s3 import ObjectStore

        del run_id
        location = ArchiveLocation(settings.s3.bucket, settings.s3.prefix, settings.s3.lustre_path or cluster.data_root)
        return archive(
            connected,
            paths,
            ObjectStore(settings.aws),
            location,
            clock,
            folder=f"{runtime.spool}/archive",
            partition=cluster.partition,
            timeout=timeout,
        )

    return run
