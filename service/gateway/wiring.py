"""The gateway's parts put together from settings."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import SecretStr

from bbpwf.clock import Clock
from bbpwf.errors import InvalidConfig
from bbpwf.platform.secrets import SecretsManager
from bbpwf.platform.tokens import TokenVerifier
from bbpwf.redact import Redactor
from bbpwf.settings import Settings
from service.gateway.authorizer import Authorizer
from service.gateway.backend import Backend
from service.gateway.instances import Instances
from service.gateway.passes import PassMaker, kept_key
from service.gateway.roster import DynamoRoster, FileRoster, Roster


def pass_maker(settings: Settings, redactor: Redactor, clock: Clock) -> PassMaker:
    """Makes passes with the key that the settings name."""
    gateway = settings.gateway
    if gateway.signing_key_secret:
        key = SecretsManager(settings.aws, redactor).get(gateway.signing_key_secret)
    elif gateway.signing_key_file is not None:
        file = gateway.signing_key_file.expanduser()
        if not file.is_file():
            raise InvalidConfig("the gateway's signing key does not exist", where=str(file))
        key = SecretStr(file.read_text())
    else:
        key = kept_key(settings.state / "gateway" / "signing-key.json")
    redactor.add(key.get_secret_value())
    return PassMaker(key, lifetime_s=gateway.pass_s, clock=clock)


def authorizer(settings: Settings, passes: PassMaker, clock: Clock) -> Authorizer:
    """Verifies tokens of the realm that the settings name."""
    return Authorizer(TokenVerifier(settings.oidc, clock), passes)


def instances(settings: Settings, environment: Mapping[str, str], *, redactor: Redactor, clock: Clock) -> Instances:
    """Finds and starts instances of the kind that the settings name.

    Args:
        settings: ours.
        environment: what Docker's instances get to know; a task definition tells ECS's.
        redactor: of this process.
        clock: for all times.
    """
    gateway = settings.gateway
    backend: Backend
    roster: Roster
    if gateway.backend == "ecs":
        from service.gateway.ecs import EcsBackend

        if not (gateway.ecs_cluster and gateway.table and gateway.subnets):
            raise InvalidConfig("the gateway needs an ECS cluster, subnets and a table", hint="See BBPWF_GATEWAY__….")
        backend = EcsBackend(gateway, settings.aws)
        roster = DynamoRoster(gateway.table, settings.aws)
    else:
        from service.gateway.containers import DockerBackend

        backend = DockerBackend(gateway, environment, redactor=redactor)
        roster = FileRoster(settings.state / "gateway" / "roster.json")
    return Instances(backend, roster, cap=gateway.max_instances, start_limit_s=gateway.start_limit_s, clock=clock)
