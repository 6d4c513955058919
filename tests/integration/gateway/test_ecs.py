"""The gateway as Lambdas: API Gateway's events in, tasks of an ECS cluster (moto's) and a real instance behind."""

from __future__ import annotations

import base64
import functools
import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests

from bbpwf.clock import SystemClock
from bbpwf.errors import NoRoom
from bbpwf.platform.tokens import TokenVerifier
from bbpwf.redact import Redactor
from bbpwf.settings import AwsSettings, GatewaySettings, OidcSettings
from sandbox import moto
from sandbox.process import Process, accepts, free_ports, start, stop
from service.gateway import handlers
from service.gateway.authorizer import Authorizer, Project
from service.gateway.ecs import EcsBackend, sighting, started_by
from service.gateway.instances import Instances, Ready, Starting
from service.gateway.passes import PassChecker, PassMaker, new_key
from service.gateway.roster import DynamoRoster
from tests.support.clock import ManualClock
from tests.support.ecs import Traps, in_front_of
from tests.support.issuer import Issuer, running_issuer

VLAB, PROJ = str(uuid.uuid4()), str(uuid.uuid4())


@pytest.fixture(scope="module")
def aws() -> Iterator[tuple[AwsSettings, Traps]]:
    """moto behind our traps, with credentials for it."""
    (port,) = free_ports(1)
    log = Path(os.environ.get("TMPDIR", "/tmp")) / f"bbpwf-moto-{port}.log"
    process = moto.process(port, {"PATH": os.environ["PATH"]}, log)
    running = start(Process(process.name, process.argv, process.env, log, lambda: accepts(port), 60))
    try:
        # left alone, moto's tasks end as soon as they are looked at
        calm = {"model_name": "ecs::task", "transition": {"progression": "manual", "times": 10**9}}
        url = f"http://127.0.0.1:{port}/moto-api/state-manager/set-transition"
        requests.post(url, json=calm, timeout=30).raise_for_status()
        with in_front_of(f"http://127.0.0.1:{port}") as (url, traps), pytest.MonkeyPatch.context() as patch:
            for name, value in moto.CREDENTIALS.items():
                patch.setenv(name, value)
            yield AwsSettings(endpoint_url=url, region="us-east-1"), traps
    finally:
        stop(running)
        log.unlink()


@functools.cache
def client(name: Any, endpoint: str) -> Any:
    """One of moto's services; a client takes a while to make."""
    return boto3.client(name, region_name="us-east-1", endpoint_url=endpoint)


@dataclass
class Site:
    """One deployment: a cluster, a table, and task definitions of projects."""

    settings: GatewaySettings
    aws: AwsSettings
    traps: Traps
    clock: ManualClock | SystemClock
    port: int = 8100
    processes: list[Instances] = field(default_factory=list)

    def instances(self) -> Instances:
        """As one of three Lambda processes has them."""
        if len(self.processes) < 3:
            self.processes.append(self._made())
        else:
            self.processes.append(self.processes.pop(0))
        return self.processes[-1]

    def _made(self) -> Instances:
        backend = EcsBackend(self.settings, self.aws, port=self.port)
        roster = DynamoRoster(self.settings.table, self.aws)
        cap = self.settings.max_instances
        return Instances(backend, roster, cap=cap, start_limit_s=300, clock=self.clock)

    def admit(self, project: Project) -> None:
        """What project.yaml does."""
        client("ecs", self.traps.moto).register_task_definition(
            family=f"bbpwf-{project.name}",
            networkMode="awsvpc",
            requiresCompatibilities=["FARGATE"],
            cpu="512",
            memory="1024",
            # moto counts on a container's own limits
            containerDefinitions=[
                {"name": "instance", "image": "bbpwf@sha256:0", "essential": True, "cpu": 512, "memory": 1024}
            ],
        )


@pytest.fixture
def site(aws: tuple[AwsSettings, Traps]) -> Site:
    settings, traps = aws
    traps.__init__(traps.moto)  # type: ignore[misc]  # as new, behind the server that knows it
    name = uuid.uuid4().hex[:8]
    ec2 = client("ec2", traps.moto)
    subnet = ec2.describe_subnets()["Subnets"][0]
    group = ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"]
    client("ecs", traps.moto).create_cluster(clusterName=name)
    client("dynamodb", traps.moto).create_table(
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
    )
    gateway = GatewaySettings(
        backend="ecs",
        ecs_cluster=name,
        table=name,
        subnets=(subnet["SubnetId"],),
        security_groups=(group,),
        max_instances=2,
    )
    made = Site(gateway, settings, traps, ManualClock())
    made.admit(Project(VLAB, PROJ))
    return made


def test_a_task_is_started_once_and_tagged_for_the_bill(site: Site) -> None:
    project = Project(VLAB, PROJ)

    def ask(number: int) -> Ready | Starting:
        return processes[number % 3].find(project, "who@asked", wait_s=5)

    processes = [site.instances() for _ in range(3)]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, range(20)))
    assert len(set(map(id, processes))) == 3
    assert {type(each) for each in answers} <= {Ready, Starting}
    assert isinstance(site.instances().find(project, "another", wait_s=5), Ready)
    (request,) = site.traps.started
    tags = {each["key"]: each["value"] for each in request["tags"]}
    assert tags["obp:costcenter:vlabid"] == VLAB
    assert tags["obp:costcenter:project"] == PROJ
    assert tags["SBO_Billing"] == "hpc:workflows"
    assert tags["bbpwf:user"] == "who@asked"
    assert request["count"] == 1
    assert len(request["clientToken"]) <= 64
    assert request["startedBy"] == f"bbpwf/{VLAB}/{PROJ}"
    assert request["networkConfiguration"]["awsvpcConfiguration"]["assignPublicIp"] == "DISABLED"


def test_failures_with_status_200_are_failures(site: Site) -> None:
    site.traps.failures = ["RESOURCE:ENI"]
    answer = call(site, site.instances())
    assert answer["statusCode"] == 503
    assert int(answer["headers"]["retry-after"]) > 0
    assert "RESOURCE:ENI" in answer["body"]
    assert site.traps.started == []
    site.clock.sleep(30)
    assert isinstance(site.instances().find(Project(VLAB, PROJ), "s", wait_s=5), Ready)
    assert len(site.traps.started) == 1


def test_a_project_that_was_not_admitted_is_told(site: Site) -> None:
    answer = call(site, site.instances(), project=Project(VLAB, "unknown"))
    assert answer["statusCode"] == 503
    assert "task definition" in answer["body"].lower()


def test_a_task_that_ecs_does_not_show_yet_is_not_doubled(site: Site) -> None:
    site.traps.unseen, site.traps.unhealthy_looks = 8, 4
    assert isinstance(site.instances().find(Project(VLAB, PROJ), "s", wait_s=20), Ready)
    assert len(site.traps.started) == 1


def test_a_starting_task_is_503_with_retry_after(site: Site) -> None:
    site.traps.unhealthy_looks = 10**6
    for version in (1, 2):
        answer = call(site, site.instances(), version=version)
        headers = answer.get("headers") or {name: value[0] for name, value in answer["multiValueHeaders"].items()}
        assert answer["statusCode"] == 503
        assert int(headers["retry-after"]) > 0
        assert "starting" in answer["body"] or "started" in answer["body"]
    assert len(site.traps.started) == 1


def test_a_lost_spot_task_comes_back_and_an_idle_one_does_not(site: Site) -> None:
    instances, project = site.instances(), Project(VLAB, PROJ)
    instances.find(project, "s", wait_s=5)
    first = running(site)
    assert len(first) == 1
    site.traps.stopped[first[0]] = {
        "lastStatus": "STOPPED",
        "stopCode": "SpotInterruption",
        "stoppedReason": "reclaimed",
        "containers": [{"exitCode": 143}],
    }
    site.clock.sleep(600)
    instances.tend()
    assert len(site.traps.started) == 2
    second = next(each for each in running(site) if each != first[0])
    site.traps.stopped[second] = {
        "lastStatus": "STOPPED",
        "stopCode": "EssentialContainerExited",
        "containers": [{"exitCode": 0}],
    }
    site.clock.sleep(600)
    instances.tend()
    instances.tend()
    assert len(site.traps.started) == 2
    assert isinstance(instances.find(project, "s", wait_s=5), Ready)
    assert len(site.traps.started) == 3
    assert len({each["clientToken"] for each in site.traps.started}) == 3


def test_no_more_tasks_than_may_be(site: Site) -> None:
    projects = [Project(VLAB, f"p{number}") for number in range(6)]
    for project in projects:
        site.admit(project)

    processes = [site.instances() for _ in range(3)]

    def ask(project: Project) -> bool:
        try:
            processes[len(site.traps.started) % 3].find(project, "s", wait_s=1)
        except NoRoom:
            return False
        return True

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, projects * 2))
    assert len(site.traps.started) == 2
    assert sum(answers) == 4
    refused = next(project for project, fine in zip(projects * 2, answers, strict=True) if not fine)
    answer = call(site, site.instances(), project=refused)
    assert answer["statusCode"] == 503
    assert "all 2 project instances that may run at once are in use" in answer["body"]


@pytest.mark.parametrize(
    ("task", "phase"),
    [
        ({"lastStatus": "PROVISIONING"}, "starting"),
        ({"lastStatus": "ACTIVATING"}, "starting"),
        ({"lastStatus": "RUNNING", "healthStatus": "UNKNOWN"}, "starting"),
        ({"lastStatus": "RUNNING", "healthStatus": "UNHEALTHY"}, "sick"),
        ({"lastStatus": "RUNNING", "desiredStatus": "STOPPED", "stopCode": "UserInitiated"}, "starting"),
        ({"lastStatus": "DEPROVISIONING", "stopCode": "UserInitiated"}, "starting"),
        ({"lastStatus": "STOPPED", "stopCode": "UserInitiated", "containers": [{"exitCode": 137}]}, "resting"),
        ({"lastStatus": "STOPPED", "stopCode": "EssentialContainerExited", "containers": [{"exitCode": 0}]}, "resting"),
        ({"lastStatus": "STOPPED", "stopCode": "EssentialContainerExited", "containers": [{"exitCode": 1}]}, "gone"),
        ({"lastStatus": "STOPPED", "stopCode": "EssentialContainerExited", "containers": [{}]}, "gone"),
        ({"lastStatus": "STOPPED", "stopCode": "TaskFailedToStart", "containers": []}, "gone"),
        ({"lastStatus": "STOPPED", "stopCode": "InfrastructureHealth", "containers": [{"exitCode": 0}]}, "gone"),
        ({"lastStatus": "SOMETHING_NEW"}, "starting"),
    ],
)
def test_what_ecs_says_of_a_task_is_understood(task: dict[str, Any], phase: str) -> None:
    assert sighting(task).phase.value == phase


def test_long_ids_still_make_a_name_that_ecs_takes() -> None:
    assert len(started_by(Project("v" * 64, "p" * 64))) <= 128


def running(site: Site) -> list[str]:
    arns = client("ecs", site.traps.moto).list_tasks(cluster=site.settings.ecs_cluster)["taskArns"]
    return [str(each) for each in arns]


# ---- whole requests, from the authorizer's event to the instance's answer ------------------------------------------


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Issuer]:
    with running_issuer(tmp_path_factory.mktemp("oidc")) as issuer:
        yield issuer


class Doors:
    """Authorizer and handler of one deployment."""

    def __init__(self, realm: Issuer, clock: Any) -> None:
        self.maker = PassMaker(new_key(), lifetime_s=60, clock=clock)
        self.checker = PassChecker(self.maker.public_keys, clock)
        self.authorizer = Authorizer(TokenVerifier(OidcSettings(issuer=realm.url), clock), self.maker)

    def decide(self, event: dict[str, Any]) -> Any:
        return handlers.decide(event, self.authorizer, simple=True, redactor=Redactor())

    def serve(self, event: dict[str, Any], instances: Instances) -> Any:
        return handlers.serve(event, self.checker, instances, wait_s=5, redactor=Redactor())


def call(site: Site, instances: Instances, *, project: Project | None = None, version: int = 2) -> dict[str, Any]:
    """A request that the authorizer let pass."""
    maker = PassMaker(new_key(), lifetime_s=60, clock=site.clock)
    wanted = project or Project(VLAB, PROJ)
    made = maker.make(
        "token",
        virtual_lab_id=wanted.virtual_lab_id,
        project_id=wanted.project_id,
        sub="s",
        username="alice",
        until=1e10,
    )
    event = request_event(version, "GET", "/version/", "token", {"pass": made})
    checker = PassChecker(maker.public_keys, site.clock)
    return dict(handlers.serve(event, checker, instances, wait_s=1, redactor=Redactor()))


def request_event(
    version: int, method: str, path: str, token: str, context: dict[str, str], body: bytes = b"", **headers: str
) -> dict[str, Any]:
    sent = {"authorization": f"Bearer {token}", **headers}
    common = {"body": base64.b64encode(body).decode(), "isBase64Encoded": True, "headers": sent}
    if version == 2:
        about = {"http": {"method": method}, "stage": "$default", "authorizer": {"lambda": context}}
        return {"version": "2.0", "rawPath": path, "rawQueryString": "q=1", "requestContext": about, **common}
    about = {"authorizer": context}
    return {
        "httpMethod": method,
        "path": path,
        "queryStringParameters": {"q": "1"},
        "requestContext": about,
        **common,
    }


class Seen(BaseHTTPRequestHandler):
    """An instance that tells what it got."""

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        if self.path.startswith("/large"):
            self._send(200, "application/octet-stream", b"x" * (handlers.ANSWER_LIMIT + 1))
            return
        said = {"path": self.path, "headers": [[n.lower(), v] for n, v in self.headers.items()], "body": body.decode()}
        self._send(418, "application/json", json.dumps(said).encode())

    do_GET = do_POST = answer  # noqa: N815  the base class's names

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in (("content-type", kind), ("set-cookie", "a=1"), ("set-cookie", "b=2")):
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class names it so
        del format, args


@pytest.fixture
def instance() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Seen)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join(10)


def authorizer_event(token: str, **headers: str) -> dict[str, Any]:
    return {
        "version": "2.0",
        "type": "REQUEST",
        "routeArn": "arn:aws:execute-api:us-east-1:1:api/$default/GET/x",
        "headers": {"authorization": f"Bearer {token}", **headers},
    }


@pytest.mark.parametrize("version", [1, 2])
def test_a_request_goes_through_both_lambdas_to_the_instance(
    site: Site, realm: Issuer, instance: int, version: int
) -> None:
    site.clock, site.port, site.traps.address = SystemClock(), instance, "127.0.0.1"
    doors = Doors(realm, site.clock)
    token = realm.forge(groups=[f"/proj/{VLAB}/{PROJ}/member"])
    decided = doors.decide(authorizer_event(token))
    assert decided["isAuthorized"] is True
    event = request_event(
        version,
        "POST",
        "/runs/a",
        token,
        decided["context"],
        b"content",
        **{"x-own": "yes", "bbpwf-pass": "forged", "project-id": "forged", "connection": "x-hop", "x-hop": "1"},
    )
    answer = doors.serve(event, site.instances())
    assert answer["statusCode"] == 418
    said = json.loads(answer["body"])
    headers: dict[str, list[str]] = {}
    for name, value in said["headers"]:
        headers.setdefault(name, []).append(value)
    assert (said["path"], said["body"]) == ("/runs/a?q=1", "content")
    assert headers["authorization"] == [f"Bearer {token}"]
    assert headers["x-own"] == ["yes"]
    assert headers["project-id"] == [PROJ]
    assert headers["virtual-lab-id"] == [VLAB]
    assert headers["bbpwf-pass"] == [decided["context"]["pass"]]
    assert "x-hop" not in headers
    assert (answer["cookies"] if version == 2 else answer["multiValueHeaders"]["set-cookie"]) == ["a=1", "b=2"]


def test_an_answer_too_large_for_a_lambda_is_told(site: Site, realm: Issuer, instance: int) -> None:
    site.clock, site.port, site.traps.address = SystemClock(), instance, "127.0.0.1"
    doors = Doors(realm, site.clock)
    token = realm.forge(groups=[f"/proj/{VLAB}/{PROJ}/member"])
    context = doors.decide(authorizer_event(token))["context"]
    answer = doors.serve(request_event(2, "GET", "/large", token, context), site.instances())
    assert answer["statusCode"] == 502
    assert "ask for a part" in answer["body"]


def test_an_instance_that_does_not_answer_is_503(site: Site, realm: Issuer) -> None:
    site.clock, site.port, site.traps.address = SystemClock(), free_ports(1)[0], "127.0.0.1"
    doors = Doors(realm, site.clock)
    token = realm.forge(groups=[f"/proj/{VLAB}/{PROJ}/member"])
    context = doors.decide(authorizer_event(token))["context"]
    answer = doors.serve(request_event(2, "GET", "/x", token, context), site.instances())
    assert answer["statusCode"] == 503
    assert "retry-after" in answer["headers"]


def test_the_handler_believes_nothing_but_a_pass_for_this_token(site: Site, realm: Issuer) -> None:
    site.clock = SystemClock()
    doors = Doors(realm, site.clock)
    token = realm.forge(groups=[f"/proj/{VLAB}/{PROJ}/member"])
    other = realm.forge(groups=[f"/proj/{VLAB}/{PROJ}/member"], jti="another")
    context = doors.decide(authorizer_event(token))["context"]
    said = {"virtual_lab_id": VLAB, "project_id": PROJ, "sub": "s"}
    for shown, told in (
        (other, context),
        (token, said),
        (token, {}),
        (token, {**said, "pass": "a.b.c"}),
        ("", context),
    ):
        answer = doors.serve(request_event(2, "GET", "/x", shown, told), site.instances())
        assert answer["statusCode"] == 401, told
    assert site.traps.started == []


def test_the_authorizer_tells_nobody_from_not_a_member(realm: Issuer) -> None:
    doors = Doors(realm, SystemClock())
    member = realm.forge(groups=[f"/proj/{VLAB}/{PROJ}/member"])
    for bad in ("", "x", realm.forge(exp=1), realm.forge(typ="Refresh"), realm.forge(iss="https://elsewhere")):
        with pytest.raises(Exception, match=r"^Unauthorized$"):
            doors.decide(authorizer_event(bad))
    foreign = doors.decide(authorizer_event(member, **{"virtual-lab-id": VLAB, "project-id": "another"}))
    assert foreign["isAuthorized"] is False
    assert "pass" not in foreign["context"]
    assert "no member of project another" in foreign["context"]["reason"]
    labadmin = realm.forge(groups=[f"/vlab/{VLAB}/admin"])
    assert doors.decide(authorizer_event(labadmin))["isAuthorized"] is False


def test_the_lambdas_are_wired_from_their_environment(
    site: Site, realm: Issuer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = new_key()
    site.traps.address = "127.0.0.1"
    secrets = boto3.client("secretsmanager", region_name="us-east-1", endpoint_url=site.traps.moto)
    arn = secrets.create_secret(Name=uuid.uuid4().hex, SecretString=key.get_secret_value())["ARN"]
    public = PassMaker(key, lifetime_s=60, clock=SystemClock()).public_keys
    environment = {
        "BBPWF_AWS__ENDPOINT_URL": site.traps.moto,
        "BBPWF_OIDC__ISSUER": realm.url,
        "BBPWF_STATE_DIR": str(tmp_path),
        "BBPWF_GATEWAY__SIGNING_KEY_SECRET": arn,
        "BBPWF_GATEWAY__PASS_KEYS": public,
        "BBPWF_GATEWAY__BACKEND": "ecs",
        "BBPWF_GATEWAY__ECS_CLUSTER": site.settings.ecs_cluster,
        "BBPWF_GATEWAY__TABLE": site.settings.table,
        "BBPWF_GATEWAY__SUBNETS": json.dumps(site.settings.subnets),
        "BBPWF_GATEWAY__SECURITY_GROUPS": json.dumps(site.settings.security_groups),
        "BBPWF_GATEWAY__WAIT_S": "0",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    token = realm.forge(groups=[f"/proj/{VLAB}/{PROJ}/member"])
    script = (
        "import json, sys\n"
        "from service.gateway import handlers\n"
        "asked, call = json.load(sys.stdin)\n"
        "said = handlers.authorize(asked, None)\n"
        "call['requestContext']['authorizer']['lambda'] = said['context']\n"
        "print(json.dumps(handlers.handle(call, None)))\n"
        "handlers.tend({}, None)\n"
    )
    events = json.dumps([authorizer_event(token), request_event(2, "GET", "/x", token, {})])
    made = subprocess.run(
        [sys.executable, "-c", script], input=events, capture_output=True, text=True, timeout=120, check=False
    )
    assert made.returncode == 0, made.stderr[-3000:]
    answer = json.loads(made.stdout.splitlines()[0])
    assert answer["statusCode"] == 503, "moto shows no health, so the instance is starting"
    assert token not in made.stderr
    assert len(running(site)) == 1
