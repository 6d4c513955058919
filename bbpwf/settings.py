"""Typed settings: read once by an entry point, passed down, never consulted from module bodies.

Sources, strongest first: environment variables ``BBPWF_<SECTION>__<NAME>``, then the TOML file named by
``BBPWF_CONFIG_FILE`` (see ``config/``), then the defaults below. ``docs/settings.md`` is generated from here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from bbpwf.errors import InvalidConfig


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ProjectSettings(_Section):
    """Which Virtual Lab Project this instance serves."""

    virtual_lab_id: str = Field("local", description="Virtual lab id (UUID), lower case.")
    project_id: str = Field("local", description="Project id (UUID), lower case.")


class ClusterSettings(_Section):
    """The cluster that jobs run on by default."""

    kind: Literal["provisioned", "ssh", "local"] = Field(
        "local",
        description="`provisioned`: ask the provisioner for the project's cluster; `ssh`: a fixed head node; "
        "`local`: processes on this machine.",
    )
    host: str = Field("", description="Head node for `ssh`; for `provisioned`, overrides the address it reports.")
    port: int = Field(22, ge=1, le=65535, description="SSH port of the head node.")
    user: str = Field("", description="Login for `ssh`.")
    key_file: Path | None = Field(None, description="Private key for `ssh`.")
    data_root: str = Field(
        "/obi/data/scratch",
        description="Folder on the cluster's shared file system under which runs keep data.",
    )
    spool_root: str = Field(
        "", description="Folder on the cluster for job spools and events; `<data_root>/.bbpwf` if empty."
    )
    software: str = Field("", description="Software environment on the shared disk; its `bin` leads a job's PATH.")
    partition: str = Field("", description="Partition for jobs that name none; the cluster's default if empty.")
    lustre: bool | None = Field(
        None, description="Whether `data_root` is on Lustre with HSM; found out from the cluster if unset."
    )
    max_local_jobs: int = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, description="Jobs at once on the `local` backend."
    )
    connect_timeout_s: float = Field(20, gt=0, description="Limit for TCP, SSH handshake and login, each.")
    command_timeout_s: float = Field(60, gt=0, description="Limit for one command on the head node.")
    keepalive_s: int = Field(30, ge=1, description="SSH keepalive interval.")
    poll_s: float = Field(30, gt=0, description="Interval of the queue query that backs up pushed events.")
    unclear_s: float = Field(
        120,
        gt=0,
        description="How long a submission whose answer was lost may still turn up in the queue before it is made "
        "again; twice Slurm's `MessageTimeout`, which is 60 s on a ParallelCluster.",
    )
    lost_after_s: float = Field(
        600, gt=0, description="A job that no witness has seen for this long ends as LOST, with its evidence."
    )


class ProvisionerSettings(_Section):
    """The HPC resource provisioner."""

    url: AnyHttpUrl | None = Field(None, description="Base URL, up to and including `/hpc-provisioner`.")
    region: str = Field("us-east-1", description="AWS region that requests are signed for.")
    tier: str = Field("debug", description="Cluster tier; also the name of its partition.")
    include_lustre: bool = Field(True, description="Ask for an FSx for Lustre file system.")
    dev: bool = Field(False, description="Use the provisioner's development template.")
    short_ids: bool = Field(
        True, description="Send only the first segment of UUIDs: ParallelCluster names hold 60 characters."
    )
    request_timeout_s: float = Field(35, gt=0, description="Limit for one request; API Gateway cuts at 29 s.")
    poll_s: float = Field(20, gt=0, description="Interval between looks at a cluster that is being made.")
    absent_tolerance_s: float = Field(
        600, gt=0, description="How long a cluster may stay unknown (404) after it was asked for."
    )
    deadline_s: float = Field(5400, gt=0, description="Overall limit for a cluster to become usable.")


class AwsSettings(_Section):
    """AWS endpoints; credentials come from botocore's own chain."""

    region: str = Field("us-east-1", description="Region of Secrets Manager and S3.")
    endpoint_url: str = Field("", description="One endpoint for all AWS services; the real ones if empty.")


class OidcSettings(_Section):
    """The identity provider: a Keycloak realm."""

    issuer: str = Field("", description="Realm URL, e.g. `https://host/auth/realms/SBO`; also the `iss` claim.")
    client_id: str = Field("bbp-workflow", description="Client of the service, for the browser login.")
    client_secret: SecretStr | None = Field(None, description="Secret of a confidential client.")
    cli_client_id: str = Field("obi-entitysdk-auth", description="Public client of the command line.")
    audience: str = Field("", description="Required `aud`; unchecked if empty, as the platform sets none.")
    offline_keys: tuple[SecretStr, ...] = Field(
        (),
        description="Fernet keys that offline logins are encrypted with in the database: the first for new ones, all "
        "for reading. Without any, offline logins are not taken.",
    )
    leeway_s: int = Field(10, ge=0, le=60, description="Clock skew allowed on `exp`, `nbf` and `iat`.")


class NexusSettings(_Section):
    """Nexus Delta, the knowledge graph."""

    url: AnyHttpUrl | None = Field(None, description="API base, up to and including `/v1`.")
    org: str = Field("", description="Organisation that results are registered in.")
    project: str = Field("", description="Project that results are registered in.")
    storage_id: str = Field("", description="Storage for uploads and links; the project's default if empty.")
    timeout_s: float = Field(30, gt=0, description="Limit for one request; uploads scale with size.")


class S3Settings(_Section):
    """Where the cluster's Lustre file system exports to (its data repository association)."""

    bucket: str = Field("", description="Bucket behind the file system path; found out from FSx if empty.")
    prefix: str = Field("", description="Key prefix in that bucket.")
    lustre_path: str = Field("", description="Folder on the cluster that maps to the prefix; `data_root` if empty.")


class ServiceSettings(_Section):
    """The HTTP service of one project instance."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8100, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    public_url: str = Field("", description="URL under which clients reach this instance; `http://host:port` if empty.")
    scheduler_port: int = Field(8082, ge=0, le=65535, description="Loopback port of Luigi's scheduler; 0 picks one.")
    workflows_path: tuple[Path, ...] = Field((), description="Extra folders to find task modules in.")
    task_modules: tuple[str, ...] = Field(
        ("tasks.simulation",), description="Modules whose tasks the catalogue offers."
    )
    max_runs: int = Field(20, ge=1, description="Runs with a head process at once; more wait as QUEUED.")
    max_runs_per_user: int = Field(10, ge=1, description="Of these, by one user.")
    max_queued: int = Field(
        1000, ge=1, description="Unfinished runs at once, waiting ones included; further launches get 429."
    )
    max_queued_per_user: int = Field(500, ge=1, description="Of these, by one user.")
    idle_minutes: float = Field(
        0,
        ge=0,
        description="The service ends itself after so long without a request, if no run is unfinished and no job, "
        "archiving or cluster is under way; never if 0.",
    )
    max_upload_mb: int = Field(64, ge=1, description="Largest launch request, all attachments together.")
    pass_keys: str = Field(
        "",
        description="JWK set of the gateway's public keys. If set, every request must carry the gateway's pass beside "
        "the user's token.",
    )
    metrics_port: int = Field(
        0, ge=0, le=65535, description="Further port for `/metrics` alone, without a token; none if 0."
    )
    metrics_host: str = Field("127.0.0.1", description="Address that `metrics_port` is opened on.")
    secure_cookies: bool = Field(True, description="Mark session cookies Secure; off only for plain HTTP on loopback.")


class HeadsSettings(_Section):
    """Processes that run the code of users: heads, and those that look at modules before a launch."""

    require_isolation: bool = Field(
        False, description="Refuse to serve unless each of them gets a uid of its own (the image sets this)."
    )
    first_uid: int = Field(20_000, ge=1000, description="First of the uids that they get; no other user has these.")
    uids: int = Field(40_000, ge=100, description="How many such uids there are.")
    folder: Path | None = Field(
        None,
        description="Where they have their folders: on a disk of this machine, not on a network's. `heads` in "
        "`state_dir` if unset.",
    )
    memory_mb: int = Field(8192, ge=512, description="Address space of one process.")
    processes: int = Field(512, ge=32, description="Processes and threads of one run; needs a uid of its own.")
    open_files: int = Field(4096, ge=64, description="Open files of one process.")
    file_mb: int = Field(1024, ge=1, description="Largest file that they may write.")
    folder_mb: int = Field(4096, ge=1, description="Most that a run may keep in its folder; beyond that it is ended.")
    ports: tuple[int, ...] = Field(
        (443,),
        description="TCP ports that they may connect to, beside Luigi's scheduler and Nexus. With 80 among them, the "
        "metadata of the cloud has to be kept from them by other means.",
    )
    read_paths: tuple[Path, ...] = Field((), description="Further files and folders that they may read.")
    write_paths: tuple[Path, ...] = Field((), description="Further folders that they may write to.")
    spare: bool = Field(
        True,
        description="While people use the instance, keep one head started and waiting (about 60 MB), so that a launch "
        "need not wait for Python.",
    )
    local_cluster: bool = Field(
        False,
        description="Let runs use this machine as the cluster `local`, too. Its jobs run as the agent's own user, who "
        "can read the ledger.",
    )


class OutboundSettings(_Section):
    """What this service asks of other hosts because a user said so: workflows by URL, webhooks."""

    hosts: tuple[str, ...] = Field((), description="Hosts that may be asked, as `host` (port 443) or `host:port`.")
    private_networks: tuple[str, ...] = Field(
        (), description="Private networks (CIDR) that listed hosts may be in; otherwise none may."
    )
    ca_file: Path | None = Field(None, description="Certificates (PEM) of authorities to trust; the system's if unset.")
    timeout_s: float = Field(10, gt=0, le=60, description="Limit for one request.")


class NotifySettings(_Section):
    """Telling others that a run ended, if its launch asked for it (`webhook`, `mail`)."""

    webhook_key: SecretStr | None = Field(
        None, min_length=16, description="Webhooks are signed with it (HMAC-SHA256); none are sent if unset."
    )
    smtp_host: str = Field("", description="Mail server; no mail is sent if empty.")
    smtp_port: int = Field(587, ge=1, le=65535, description="Port of the mail server.")
    smtp_starttls: bool = Field(True, description="Encrypt (STARTTLS) before anything is said.")
    smtp_user: str = Field("", description="Login at the mail server, if it wants one.")
    smtp_password: SecretStr | None = Field(None, description="Password of that login.")
    smtp_timeout_s: float = Field(20, gt=0, le=120, description="Limit for each step of sending a mail.")
    mail_from: str = Field("bbpwf@localhost", description="Sender of mails.")
    mail_domains: tuple[str, ...] = Field((), description="Domains (lower case) that mail may be sent to.")


class GatewaySettings(_Section):
    """The gateway in front of all instances of a deployment: `bbpwf gateway`, or its Lambdas."""

    backend: Literal["docker", "ecs"] = Field(
        "docker", description="What instances are: containers of a Docker daemon, or tasks of an ECS cluster."
    )
    host: str = Field("127.0.0.1", description="Address that `bbpwf gateway` listens on.")
    port: int = Field(8090, ge=0, le=65535, description="Port that `bbpwf gateway` listens on; 0 picks a free one.")
    public_url: str = Field("", description="URL under which clients reach the gateway; `http://host:port` if empty.")
    signing_key_file: Path | None = Field(
        None, description="Private EC P-256 key (JWK) that passes are signed with; made in `state_dir` if unset."
    )
    signing_key_secret: str = Field("", description="The same as a secret of Secrets Manager, by ARN.")
    pass_keys: str = Field("", description="JWK set of the public keys that passes are verified with, for the Lambdas.")
    pass_s: int = Field(60, ge=5, le=900, description="Life of a pass, in seconds; never longer than the token's.")
    simple_responses: bool = Field(
        True, description="Whether the HTTP API's authorizer answers simply (payload 2.0), or with a policy."
    )
    max_instances: int = Field(20, ge=1, description="Instances at once, of all projects together.")
    wait_s: float = Field(
        20, ge=0, description="How long a request waits for its instance to come up; then 503 with `Retry-After`."
    )
    start_limit_s: float = Field(300, gt=0, description="An instance that is not healthy after this long is replaced.")
    body_limit_mb: float = Field(64, gt=0, description="Largest request that is passed on; API Gateway takes 10 MB.")
    cost_tag: str = Field("hpc:workflows", description="Value of the tag `SBO_Billing` on every instance.")
    docker_url: str = Field("unix:///var/run/docker.sock", description="The Docker daemon.")
    image: str = Field("bbpwf:latest", description="Image of an instance.")
    network: str = Field(
        "bbpwf", description="Bridge network of instances, made if absent; each has its own network namespace."
    )
    instance_config: Path | None = Field(
        None, description="Settings file of every instance, mounted read-only; the project comes from the gateway."
    )
    mounts: tuple[str, ...] = Field(
        (), description="Further read-only mounts of every instance, as `source:target`; absolute paths."
    )
    memory_mb: int = Field(2048, ge=128, description="Memory of an instance (Docker).")
    cpus: float = Field(1, gt=0, description="Processors of an instance (Docker).")
    max_processes: int = Field(1024, ge=64, description="Processes and threads of an instance (Docker).")
    ecs_cluster: str = Field("", description="ECS cluster that instances run in; nothing else may.")
    task_family: str = Field(
        "bbpwf", description="Families of task definitions are `<task_family>-<virtual lab>-<project>`."
    )
    container: str = Field("instance", description="Name of the container in those task definitions.")
    subnets: tuple[str, ...] = Field((), description="Subnets of instances (ECS).")
    security_groups: tuple[str, ...] = Field((), description="Security groups of instances (ECS).")
    table: str = Field("", description="DynamoDB table that says which instance serves which project.")


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix="BBPWF_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    state_dir: Path = Field(
        Path("~/.local/state/bbpwf"), description="Folder for ledger, sockets, runs and pinned host keys."
    )
    database_url: str = Field("", description="SQLAlchemy URL; SQLite in `state_dir` if empty.")
    scheduler_url: str = Field("", description="A `luigid` for `bbpwf run`; an in-process scheduler if empty.")
    url: str = Field("", description="The service that client commands talk to.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least severe level to log.")
    log_json: bool = Field(False, description="Log one JSON object a line.")
    project: ProjectSettings = ProjectSettings()
    cluster: ClusterSettings = ClusterSettings()
    provisioner: ProvisionerSettings = ProvisionerSettings()
    aws: AwsSettings = AwsSettings()
    oidc: OidcSettings = OidcSettings()
    nexus: NexusSettings = NexusSettings()
    s3: S3Settings = S3Settings()
    service: ServiceSettings = ServiceSettings()
    heads: HeadsSettings = HeadsSettings()
    outbound: OutboundSettings = OutboundSettings()
    notify: NotifySettings = NotifySettings()
    gateway: GatewaySettings = GatewaySettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then environment, then the TOML file; no dotenv file and no secrets folder."""
        del dotenv_settings, file_secret_settings
        sources: list[PydanticBaseSettingsSource] = [init_settings, env_settings]
        if file := os.environ.get("BBPWF_CONFIG_FILE"):
            sources.append(TomlConfigSettingsSource(settings_cls, Path(file)))
        return tuple(sources)

    @property
    def state(self) -> Path:
        """``state_dir`` with ``~`` expanded, absolute."""
        return self.state_dir.expanduser().absolute()

    @property
    def database(self) -> str:
        """The SQLAlchemy URL in force."""
        return self.database_url or f"sqlite:///{self.state / 'bbpwf.db'}"


def load() -> Settings:
    """Settings from the environment and the file that ``BBPWF_CONFIG_FILE`` names.

    Raises:
        InvalidConfig: the file is missing or not TOML, or a value is unknown or ill-typed; names each.
    """
    file = os.environ.get("BBPWF_CONFIG_FILE", "")
    if file and not Path(file).is_file():
        raise InvalidConfig(f"the settings file {file!r} does not exist", hint="Correct BBPWF_CONFIG_FILE.")
    try:
        return Settings()
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False, include_url=False)
        )
        raise InvalidConfig(f"invalid settings: {problems}", where=file or "environment") from None
    except ValueError as error:  # TOML syntax, or JSON in an environment variable
        raise InvalidConfig(f"invalid settings: {error}", where=file or "environment") from error
    except OSError as error:
        raise InvalidConfig(f"the settings file cannot be read: {error.strerror}", where=file) from error
