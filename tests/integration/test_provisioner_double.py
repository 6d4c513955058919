"""The real provisioner client and Secrets Manager client against the double and moto as processes, trap by trap."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from botocore.credentials import ReadOnlyCredentials
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bbpwf.clock import SystemClock
from bbpwf.errors import (
    ClusterFailed,
    DeadlineExceeded,
    InvalidConfig,
    ProvisionerError,
    SecretUnavailable,
)
from bbpwf.platform.aws import CredentialsProvider, SigV4, ambient_credentials
from bbpwf.platform.cluster import ClusterDescription, ClusterKeys, ClusterStatus, secret_name
from bbpwf.platform.provisioner import ProvisionerClient
from bbpwf.platform.provisioning import Phase, Progress, Provisioning
from bbpwf.platform.secrets import SecretsManager
from bbpwf.redact import MASK, Redactor
from bbpwf.settings import AwsSettings, ProjectSettings, ProvisionerSettings
from sandbox.process import Process, Running, accepts, free_ports, start, stop

KEY_ID, SECRET = "AKIAEXAMPLEFORTESTS0", "a-secret-access-key-for-tests"
CREDENTIALS = ReadOnlyCredentials(KEY_ID, SECRET, None)
ABSENT_S, CREATE_S, DELETE_S = 0.3, 0.6, 0.4


def pem() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    ).decode()


@dataclass
class Platform:
    """moto's Secrets Manager and the provisioner, and one project of them."""

    origin: str
    aws: str
    process: Process
    running: Running
    sim_key: str
    admin_key: str
    project: ProjectSettings = field(default_factory=ProjectSettings)

    @property
    def url(self) -> str:
        return f"{self.origin}/production/hpc-provisioner"

    def faults(self, **knobs: object) -> None:
        requests.post(f"{self.origin}/_faults", json=knobs, timeout=10).raise_for_status()

    def settings(self, **changes: Any) -> ProvisionerSettings:
        return ProvisionerSettings(**{"url": self.url, "poll_s": 0.05, "deadline_s": 20, **changes})

    def client(
        self,
        credentials: CredentialsProvider = lambda: CREDENTIALS,
        keys: ClusterKeys | None = None,
        **changes: Any,
    ) -> ProvisionerClient:
        settings = self.settings(**changes)
        return ProvisionerClient(settings, self.project, credentials=credentials, clock=SystemClock(), keys=keys)

    def provisioning(self, client: ProvisionerClient | None = None, **changes: Any) -> Provisioning:
        return Provisioning(client or self.client(**changes), self.settings(**changes), SystemClock())

    def send(self, method: str, path: str, **query: str) -> requests.Response:
        """A signed request without the client."""
        signed = SigV4(CREDENTIALS, "execute-api", "us-east-1")
        return requests.request(method, self.url + path, params=query, auth=signed, timeout=10)


@pytest.fixture(scope="module")
def one_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("provisioner")
    aws_port, port = free_ports(2)
    env = {"PATH": os.environ["PATH"], "AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET}
    sim, admin = pem(), pem()
    (folder / "sim").write_text(sim)
    (folder / "admin").write_text(admin)
    aws = f"http://127.0.0.1:{aws_port}"
    server = (sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(aws_port))
    moto = start(Process("moto", server, env, folder / "moto.log", lambda: accepts(aws_port)))
    options = {
        "port": port,
        "state": folder / "state",
        "aws-endpoint": aws,
        "sim-key": folder / "sim",
        "admin-key": folder / "admin",
        "head-node": "127.0.0.1",
        "absent-seconds": ABSENT_S,
        "create-seconds": CREATE_S,
        "delete-seconds": DELETE_S,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    argv = (sys.executable, "-W", "error", "-m", "sandbox.provisioner", *words)
    process = Process("provisioner", argv, env, folder / "provisioner.log", lambda: accepts(port))
    try:
        platform = Platform(f"http://127.0.0.1:{port}", aws, process, start(process), sim, admin)
        yield platform
        stop(platform.running)
    finally:
        stop(moto)


@pytest.fixture
def platform(one_platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """The platform without faults, for a project that nobody else uses."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    requests.delete(f"{one_platform.origin}/_faults", timeout=10).raise_for_status()
    one_platform.project = ProjectSettings(virtual_lab_id=str(uuid.uuid4()), project_id=str(uuid.uuid4()))
    return one_platform


def until(seen: Callable[[], bool], within: float = 10.0) -> None:
    deadline = time.monotonic() + within
    while not seen():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.02)


# -- the way to a cluster


def test_a_project_without_a_cluster_gets_one(platform: Platform) -> None:
    seen: list[Progress] = []
    access = platform.provisioning().wait_until_ready(seen.append)
    assert access is not None
    phases = list(dict.fromkeys(progress.phase for progress in seen))
    assert phases == [phase for phase in Phase if phase in phases]  # forward only
    assert (phases[0], phases[-1]) == (Phase.ABSENT, Phase.READY)
    assert [progress.elapsed_s for progress in seen] == sorted(progress.elapsed_s for progress in seen)
    assert access.address == "127.0.0.1"
    assert (access.keys.login.user, access.keys.admin.user) == ("sim", "ec2-user")
    secrets = SecretsManager(AwsSettings(endpoint_url=platform.aws))
    assert secrets.get(access.keys.login.secret_id).get_secret_value() == platform.sim_key
    assert secrets.get(access.keys.admin.secret_id).get_secret_value() == platform.admin_key


def test_a_cluster_shows_itself_bit_by_bit(platform: Platform) -> None:
    platform.faults(stage="absent")
    client = platform.client()
    provisioning = platform.provisioning(client)
    assert client.describe() is None
    assert provisioning.step().phase is Phase.ABSENT
    assert client.describe() is None  # for a while after a request that was answered well
    assert provisioning.step().phase is Phase.ABSENT

    def shown() -> ClusterDescription:
        found = client.describe()
        assert found is not None
        return found

    platform.faults(stage="creating")
    until(lambda: client.describe() is not None)
    assert (shown().status, shown().head_node) == (ClusterStatus.CREATE_IN_PROGRESS, None)
    assert shown().fleet == "UNKNOWN"
    assert provisioning.step().phase is Phase.CREATING
    platform.faults(stage="booting")
    until(lambda: shown().head_node is not None)
    assert shown().status is ClusterStatus.CREATE_IN_PROGRESS
    assert provisioning.step().phase is Phase.CREATING  # there is an address, and nobody can log in yet
    platform.faults(stage="")
    until(lambda: shown().status is ClusterStatus.CREATE_COMPLETE)
    assert shown().fleet == "RUNNING"
    assert shown().fsx_id.startswith("fs-")
    assert provisioning.step().phase is Phase.READY


def test_a_cluster_that_exists_is_ready_at_the_first_look(platform: Platform) -> None:
    platform.provisioning().wait_until_ready()
    again = platform.provisioning()
    assert again.step().phase is Phase.READY
    assert again.access is not None


def test_a_cluster_without_lustre_has_no_file_system(platform: Platform) -> None:
    access = platform.provisioning(include_lustre=False).wait_until_ready()
    assert access is not None
    assert access.description.fsx_id == ""


def test_a_wait_can_be_given_up(platform: Platform) -> None:
    looks: list[Progress] = []
    assert platform.provisioning().wait_until_ready(looks.append, lambda: len(looks) >= 2) is None


def test_a_restarted_provisioner_still_knows_its_clusters(platform: Platform) -> None:
    platform.provisioning().wait_until_ready()
    stop(platform.running)
    platform.running = start(platform.process)
    assert platform.provisioning().step().phase is Phase.READY


# -- traps


@pytest.mark.parametrize("swap", ["prefix", "swapped"])
@pytest.mark.parametrize("generation", ["new", "middle"])
def test_exchanged_arns_of_a_repeated_request_do_not_mislead(platform: Platform, swap: str, generation: str) -> None:
    platform.faults(key_fields=generation)
    first = platform.client().request()
    platform.faults(swap_arns=swap)
    keys = platform.client().request()
    assert secret_name(first.login.secret_id) == f"{platform.client().name}_sim"
    assert keys.login == first.login
    # a prefix match names the user's secret twice; the administrator's is then asked for by its name
    assert keys.admin.secret_id in {first.admin.secret_id, str(platform.client().name)}
    secrets = SecretsManager(AwsSettings(endpoint_url=platform.aws))
    assert secrets.get(keys.login.secret_id).get_secret_value() == platform.sim_key
    assert secrets.get(keys.admin.secret_id).get_secret_value() == platform.admin_key
    assert platform.client(keys=first).request() == first  # who remembers the first answer needs no name


def test_the_oldest_provisioners_key_is_the_administrators(platform: Platform) -> None:
    platform.faults(key_fields="old")
    keys = platform.client().request()
    assert keys.login == keys.admin
    assert keys.login.user == "ec2-user"
    secrets = SecretsManager(AwsSettings(endpoint_url=platform.aws))
    assert secrets.get(keys.login.secret_id).get_secret_value() == platform.admin_key


def test_a_cluster_being_deleted_is_awaited_and_then_asked_for_again(platform: Platform) -> None:
    platform.provisioning().wait_until_ready()
    platform.faults(stage="deleting")
    assert platform.client().delete()
    provisioning = platform.provisioning()
    assert [provisioning.step().phase for _ in range(3)] == [Phase.DELETING] * 3
    platform.faults(stage="")
    access = provisioning.wait_until_ready()
    assert access is not None
    secrets = SecretsManager(AwsSettings(endpoint_url=platform.aws))
    assert secrets.get(access.keys.login.secret_id).get_secret_value() == platform.sim_key


def test_a_request_during_deletion_makes_keys_but_no_cluster(platform: Platform) -> None:
    platform.provisioning().wait_until_ready()
    client = platform.client()
    platform.faults(stage="deleting")
    client.delete()
    client.request()
    platform.faults(stage="")
    until(lambda: client.describe() is None)
    time.sleep(ABSENT_S + 0.2)  # what must not happen takes this long to happen
    assert client.describe() is None


def test_a_cluster_that_is_deleted_while_we_wait_is_asked_for_again(platform: Platform) -> None:
    client = platform.client()
    provisioning = platform.provisioning(client)
    platform.faults(stage="booting")
    until(lambda: provisioning.step().phase is Phase.CREATING)
    platform.client().delete()
    platform.faults(stage="")
    access = provisioning.wait_until_ready()
    assert access is not None
    secrets = SecretsManager(AwsSettings(endpoint_url=platform.aws))
    assert secrets.get(access.keys.login.secret_id).get_secret_value() == platform.sim_key


def test_a_failed_creation_is_reported_and_left_alone(platform: Platform) -> None:
    platform.faults(create_fails="OnNodeConfiguredExecutionFailure")
    with pytest.raises(ClusterFailed, match=r"CREATE_FAILED.*OnNodeConfiguredExecutionFailure") as caught:
        platform.provisioning().wait_until_ready()
    assert "delete the cluster" in caught.value.hint
    assert not caught.value.retryable
    platform.faults(create_fails="")
    with pytest.raises(ClusterFailed):  # sticky: asking again heals nothing
        platform.provisioning().wait_until_ready()
    left = platform.client().describe()
    assert left is not None
    assert left.status is ClusterStatus.CREATE_FAILED


def test_a_failed_deletion_is_reported(platform: Platform) -> None:
    platform.provisioning().wait_until_ready()
    platform.faults(delete_fails=True)
    platform.client().delete()
    with pytest.raises(ClusterFailed, match="DELETE_FAILED"):
        platform.provisioning().wait_until_ready()


def test_a_cluster_that_never_appears_is_given_up(platform: Platform) -> None:
    with pytest.raises(ClusterFailed, match="never appeared") as caught:
        platform.provisioning(tier="no-such-tier", absent_tolerance_s=0.8).wait_until_ready()
    assert "no-such-tier" in caught.value.hint


def test_the_overall_limit_holds(platform: Platform) -> None:
    platform.faults(never_appears=True)
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="was asked for") as caught:
        platform.provisioning(deadline_s=0.5).wait_until_ready()
    assert time.monotonic() - begun < 5
    assert "DEADLINE" in caught.value.hint


@pytest.mark.parametrize("state", ["stopped", "terminated"])
def test_a_head_node_that_is_gone_is_named(platform: Platform, state: str) -> None:
    platform.faults(head_node_state=state)
    with pytest.raises(ClusterFailed, match=state):
        platform.provisioning().wait_until_ready()


def test_a_stopped_fleet_is_mentioned(platform: Platform) -> None:
    platform.faults(fleet="STOPPED")
    seen: list[Progress] = []
    platform.provisioning().wait_until_ready(seen.append)
    assert "STOPPED" in seen[-1].message


@pytest.mark.parametrize("fault", ["throttle_next", "crash_next", "timeout_next"])
def test_passing_trouble_is_survived(platform: Platform, fault: str) -> None:
    platform.faults(**{fault: 3})
    seen: list[Progress] = []
    assert platform.provisioning().wait_until_ready(seen.append) is not None
    assert any("trying again" in progress.message for progress in seen)


def test_trouble_makes_the_looks_rarer(platform: Platform) -> None:
    platform.faults(describe_error="botocore.exceptions.ClientError")
    provisioning = platform.provisioning(poll_s=1)
    waits = []
    for _ in range(6):
        assert "botocore.exceptions.ClientError" in provisioning.step().message
        waits.append(provisioning.next_look_s)
    assert waits == [2, 4, 8, 8, 8, 8]
    platform.faults(describe_error="")
    provisioning.step()
    assert provisioning.next_look_s == 1


def test_a_question_with_one_id_gets_the_list(platform: Platform) -> None:
    client = platform.client()
    client.request()
    until(lambda: client.describe() is not None)
    answer = platform.send("GET", "/pcluster", vlab_id=client.name.vlab_id).json()
    assert "clusterStatus" not in answer
    assert {"clusterName", "cloudformationStackStatus"} <= set(answer["clusters"][0])
    assert client.list()[str(client.name)].startswith("CREATE_")


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_a_missing_id_crashes_the_lambda(platform: Platform, method: str) -> None:
    answer = platform.send(method, "/pcluster", vlab_id="v")
    assert (answer.status_code, answer.json()) == (502, {"message": "Internal server error"})


def test_deletion_takes_the_keys_at_once_and_fails_the_second_time(platform: Platform) -> None:
    access = platform.provisioning().wait_until_ready()
    assert access is not None
    client = platform.client()
    assert client.delete()
    secrets = SecretsManager(AwsSettings(endpoint_url=platform.aws))
    with pytest.raises(SecretUnavailable, match="does not exist") as caught:
        secrets.get(access.keys.login.secret_id)
    assert not caught.value.retryable
    with pytest.raises(ProvisionerError, match="being deleted now"):
        client.delete()
    raw = platform.send("DELETE", "/pcluster", vlab_id=client.name.vlab_id, project_id=client.name.project_id)
    assert raw.status_code == 500
    assert raw.text.startswith("<class")  # plain text, no JSON


def test_deleting_what_never_came_about_is_no_error(platform: Platform) -> None:
    platform.faults(never_appears=True)
    client = platform.client()
    client.request()
    assert client.delete() is False


def test_plain_text_answers_of_older_provisioners_are_understood(platform: Platform) -> None:
    assert platform.client().version() == "0.1.0"
    platform.faults(plain_text=True)
    assert platform.client().version() == "0.1.0"
    assert platform.client().describe() is None
    platform.faults(describe_error="botocore.exceptions.ClientError")
    with pytest.raises(ProvisionerError, match=r"500.*ClientError") as caught:
        platform.client().describe()
    assert caught.value.retryable


def test_full_ids_are_refused_before_anything_is_asked(platform: Platform) -> None:
    with pytest.raises(InvalidConfig, match="82 characters") as caught:
        platform.client(short_ids=False)
    assert "SHORT_IDS" in caught.value.hint
    ids = {"vlab_id": platform.project.virtual_lab_id, "project_id": platform.project.project_id}
    assert platform.send("POST", "/pcluster", **ids).status_code == 200  # which the provisioner itself would not do
    time.sleep(ABSENT_S + 0.2)  # nothing ever appears; this is how long it would take
    assert platform.send("GET", "/pcluster", **ids).status_code == 404


def test_projects_with_similar_names_keep_their_keys_apart(platform: Platform) -> None:
    platform.project = ProjectSettings(virtual_lab_id=uuid.uuid4().hex[:8], project_id="p")
    short = platform.client().request()
    platform.project = ProjectSettings(virtual_lab_id=platform.project.virtual_lab_id, project_id="p2")
    long = platform.client().request()
    assert len({short.login, short.admin, long.login, long.admin}) == 4


# -- being let in


def test_a_wrong_secret_key_is_refused_for_good(platform: Platform) -> None:
    wrong = ReadOnlyCredentials(KEY_ID, "not-the-secret-access-key", None)
    with pytest.raises(ProvisionerError, match="signature") as caught:
        platform.provisioning(platform.client(lambda: wrong)).wait_until_ready()
    assert not caught.value.retryable
    assert "credentials" in caught.value.hint
    assert "not-the-secret-access-key" not in str(caught.value)


def test_a_foreign_account_is_refused(platform: Platform) -> None:
    with pytest.raises(ProvisionerError, match="security token"):
        platform.client(lambda: ReadOnlyCredentials("AKIASOMEBODYELSE0000", SECRET, None)).describe()


def test_requests_for_another_region_or_path_are_refused(platform: Platform) -> None:
    assert requests.get(f"{platform.url}/version", timeout=10).json() == {"message": "Missing Authentication Token"}
    assert platform.send("PUT", "/pcluster").status_code == 403
    with pytest.raises(ProvisionerError, match="403"):
        platform.client(url=f"{platform.origin}/staging").version()
    with pytest.raises(ProvisionerError, match="region"):
        platform.client(region="eu-west-1").version()


def test_temporary_credentials_sign_too(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a/session+token==")
    assert platform.client(ambient_credentials()).version() == "0.1.0"


def test_missing_credentials_are_named(platform: Platform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(ProvisionerError, match="no AWS credentials") as caught:
        platform.client(ambient_credentials()).describe()
    assert not caught.value.retryable
    with pytest.raises(SecretUnavailable, match="no AWS credentials"):
        SecretsManager(AwsSettings(endpoint_url=platform.aws)).get("anything")


def test_a_netrc_file_does_not_replace_the_signature(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password something\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert platform.client().version() == "0.1.0"


# -- not being answered


def test_nobody_there_is_worth_another_try(platform: Platform) -> None:
    (port,) = free_ports(1)
    with pytest.raises(ProvisionerError, match="could not be reached") as caught:
        platform.client(url=f"http://127.0.0.1:{port}/x").describe()
    assert caught.value.retryable


def test_a_slow_answer_is_not_waited_for(platform: Platform) -> None:
    platform.faults(slow_s=5)
    begun = time.monotonic()
    with pytest.raises(ProvisionerError, match=r"within 0\.3 s") as caught:
        platform.client(request_timeout_s=0.3).describe()
    assert caught.value.retryable
    assert time.monotonic() - begun < 3


# -- secrets


def test_the_presigned_url_of_a_description_goes_nowhere(platform: Platform, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    access = platform.provisioning().wait_until_ready()
    raw = platform.send("GET", "/pcluster", **vars(platform.client().name)).json()
    assert "X-Amz-Signature=" in raw["clusterConfiguration"]["url"]
    assert "X-Amz-Signature" not in repr(access) + caplog.text
    assert SECRET not in caplog.text


def test_a_secret_is_masked_as_soon_as_it_is_read(platform: Platform) -> None:
    keys = platform.client().request()
    redactor = Redactor()
    value = SecretsManager(AwsSettings(endpoint_url=platform.aws), redactor).get(keys.login.secret_id)
    assert platform.sim_key not in repr(value)
    assert redactor.mask(platform.sim_key.splitlines()[3]) == MASK


def moto(platform: Platform, action: str, **body: object) -> None:
    target = {"X-Amz-Target": f"secretsmanager.{action}", "Content-Type": "application/x-amz-json-1.1"}
    signed = SigV4(CREDENTIALS, "secretsmanager", "us-east-1")
    answer = requests.post(platform.aws + "/", data=json.dumps(body), headers=target, auth=signed, timeout=10)
    answer.raise_for_status()


def test_secrets_that_cannot_be_used_say_why(platform: Platform) -> None:
    secrets = SecretsManager(AwsSettings(endpoint_url=platform.aws))
    name = f"s-{uuid.uuid4()}"
    moto(platform, "CreateSecret", Name=name, SecretString=" \n", ClientRequestToken=str(uuid.uuid4()))
    with pytest.raises(SecretUnavailable, match="empty"):
        secrets.get(name)
    moto(platform, "DeleteSecret", SecretId=name)
    with pytest.raises(SecretUnavailable, match="scheduled for deletion") as caught:
        secrets.get(name)
    assert not caught.value.retryable
    binary = f"b-{uuid.uuid4()}"
    moto(platform, "CreateSecret", Name=binary, SecretBinary="a2V5", ClientRequestToken=str(uuid.uuid4()))
    assert secrets.get(binary).get_secret_value() == "key"


def test_a_secrets_manager_that_is_away_is_worth_another_try() -> None:
    (port,) = free_ports(1)
    nowhere = AwsSettings(endpoint_url=f"http://127.0.0.1:{port}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        with pytest.raises(SecretUnavailable, match="did not answer") as caught:
            SecretsManager(nowhere).get("anything")
    assert caught.value.retryable
