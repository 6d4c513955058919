"""What the provisioner's answers mean, whatever they look like; and patience, measured by a clock of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bbpwf.errors import BbpwfError, ClusterFailed, DeadlineExceeded, InvalidConfig, ProvisionerError
from bbpwf.platform.cluster import (
    ClusterDescription,
    ClusterKeys,
    ClusterName,
    ClusterStatus,
    HeadNode,
    KeyRef,
    choose_keys,
    cluster_name,
    parse_description,
    secret_name,
)
from bbpwf.platform.http import Reply
from bbpwf.platform.provisioner import ProvisionerClient
from bbpwf.platform.provisioning import Phase, Provisioning
from bbpwf.settings import ProjectSettings, ProvisionerSettings
from tests.support.clock import ManualClock

NAME = ClusterName("v", "p")
KEYS = ClusterKeys(KeyRef("sim", "pcluster-v-p_sim"), KeyRef("ec2-user", "pcluster-v-p"))


def arn(name: str, suffix: str = "AbCdEf") -> str:
    return f"arn:aws:secretsmanager:us-east-1:123456789012:secret:{name}-{suffix}"


def project(virtual_lab_id: str, project_id: str) -> ProjectSettings:
    return ProjectSettings(virtual_lab_id=virtual_lab_id, project_id=project_id)


# -- names


def test_only_the_first_segment_of_a_uuid_goes_into_the_name() -> None:
    ids = project("7a1b2c3d-0000-4000-8000-00000000a001", "5e6f7a8b-0000-4000-8000-00000000b001")
    name = cluster_name(ids, short_ids=True)
    assert str(name) == "pcluster-7a1b2c3d-5e6f7a8b"
    assert (name.user_secret, name.admin_secret) == ("pcluster-7a1b2c3d-5e6f7a8b_sim", "pcluster-7a1b2c3d-5e6f7a8b")


@pytest.mark.parametrize("length", [24, 25, 26])
def test_sixty_characters_are_the_limit(length: int) -> None:
    ids = project("v" * 25, "p" * length)  # "pcluster-" and a dash are ten more
    if length <= 25:
        assert len(str(cluster_name(ids, short_ids=False))) == 35 + length
    else:
        with pytest.raises(InvalidConfig, match="61 characters"):
            cluster_name(ids, short_ids=False)


@pytest.mark.parametrize("bad", ["", "a_b", "a b", "a/b", "ä", "a\n", "../x", "a&tier=prod-mpi", "-a"])
def test_ids_that_no_cluster_can_be_named_after_are_refused(bad: str) -> None:
    with pytest.raises(InvalidConfig):
        cluster_name(project(bad, "p"), short_ids=True)
    with pytest.raises(InvalidConfig):
        cluster_name(project("v", bad), short_ids=True)


# -- keys


def answer(**fields: object) -> dict[str, object]:
    return {"cluster": {"clusterName": str(NAME), "clusterStatus": "CREATE_REQUEST_RECEIVED", **fields}}


SIM, ADMIN = arn("pcluster-v-p_sim"), arn("pcluster-v-p")


@pytest.mark.parametrize(
    ("fields", "login", "admin"),
    [
        pytest.param(
            {"ssh_user": "sim", "user_private_ssh_key_arn": SIM, "admin_private_ssh_key_arn": ADMIN},
            KeyRef("sim", SIM),
            KeyRef("ec2-user", ADMIN),
            id="today",
        ),
        pytest.param(
            {"user_private_ssh_key_arn": SIM, "admin_private_ssh_key_arn": ADMIN},
            KeyRef("sim", SIM),
            KeyRef("ec2-user", ADMIN),
            id="no user named",
        ),
        pytest.param(
            {"private_ssh_key_arn": SIM, "admin_user_private_ssh_key_arn": ADMIN},
            KeyRef("sim", SIM),
            KeyRef("ec2-user", ADMIN),
            id="middle",
        ),
        pytest.param({"private_ssh_key_arn": ADMIN}, KeyRef("ec2-user", ADMIN), KeyRef("ec2-user", ADMIN), id="oldest"),
        pytest.param(
            {"user_private_ssh_key_arn": ADMIN, "admin_private_ssh_key_arn": SIM},
            KeyRef("sim", SIM),
            KeyRef("ec2-user", ADMIN),
            id="exchanged",
        ),
        pytest.param(
            {"user_private_ssh_key_arn": arn("pcluster-v-p2_sim"), "admin_private_ssh_key_arn": arn("pcluster-v-p2")},
            KeyRef("sim", "pcluster-v-p_sim"),
            KeyRef("ec2-user", "pcluster-v-p"),
            id="another project's",
        ),
        pytest.param(
            {"user_private_ssh_key_arn": "pcluster-v-p_sim", "admin_private_ssh_key_arn": 7},
            KeyRef("sim", "pcluster-v-p_sim"),
            KeyRef("ec2-user", "pcluster-v-p"),
            id="no ARNs",
        ),
    ],
)
def test_a_key_is_known_by_the_name_of_its_secret(fields: dict[str, object], login: KeyRef, admin: KeyRef) -> None:
    assert choose_keys(answer(**fields), NAME) == ClusterKeys(login, admin)


def test_a_remembered_arn_is_better_than_a_name_and_worse_than_a_new_one() -> None:
    remembered = ClusterKeys(KeyRef("sim", SIM), KeyRef("ec2-user", ADMIN))
    wrong = answer(user_private_ssh_key_arn=SIM, admin_private_ssh_key_arn=SIM)
    assert choose_keys(wrong, NAME, remembered).admin.secret_id == ADMIN
    renewed = arn("pcluster-v-p_sim", "ZyXwVu")
    right = answer(user_private_ssh_key_arn=renewed, admin_private_ssh_key_arn=ADMIN)
    assert choose_keys(right, NAME, remembered).login.secret_id == renewed


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {},
        {"cluster": None},
        answer(),
        answer(clusterName="pcluster-v-p2", user_private_ssh_key_arn=SIM),
        answer(user_private_ssh_key_arn=SIM, ssh_user="root; rm -rf /"),
        answer(user_private_ssh_key_arn=SIM, ssh_user="-oProxyCommand=x"),
    ],
)
def test_an_answer_without_a_usable_key_is_an_error(content: object) -> None:
    with pytest.raises(ProvisionerError):
        choose_keys(content, NAME)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (SIM, "pcluster-v-p_sim"),
        ("arn:aws-cn:secretsmanager:cn-north-1:123456789012:secret:a/b-c-AbCdEf", "a/b-c"),
        ("arn:aws:secretsmanager:us-east-1:123456789012:secret:name", ""),
        ("arn:aws:ssm:us-east-1:123456789012:secret:name-AbCdEf", ""),
        (SIM + "\n", ""),
        ("", ""),
    ],
)
def test_the_name_in_an_arn(text: str, name: str) -> None:
    assert secret_name(text) == name


# -- descriptions


def described(**changes: Any) -> dict[str, Any]:
    return {
        "clusterName": "pcluster-v-p",
        "clusterStatus": "CREATE_COMPLETE",
        "cloudFormationStackStatus": "CREATE_COMPLETE",
        "computeFleetStatus": "RUNNING",
        "clusterConfiguration": {"url": "https://b.s3.amazonaws.com/c?X-Amz-Signature=0123456789abcdef0123"},
        "headNode": {"privateIpAddress": "10.0.0.7", "state": "running"},
        "clusterFsxId": None,
        **changes,
    }


def test_a_description_keeps_what_is_needed_and_no_presigned_url() -> None:
    found = parse_description(described(), NAME)
    assert found.status is ClusterStatus.CREATE_COMPLETE
    assert found.head_node == HeadNode("10.0.0.7", "running")
    assert "X-Amz" not in repr(found)
    assert parse_description(described(headNode=None), NAME).head_node is None


def test_an_unknown_status_is_kept_by_name_and_not_guessed() -> None:
    found = parse_description(described(clusterStatus="HIBERNATING"), NAME)
    assert found.status is None
    assert found.status_name == "HIBERNATING"


@pytest.mark.parametrize(
    "content", [None, [], {}, {"clusters": []}, described(clusterStatus=None), described(clusterName="pcluster-v-p2")]
)
def test_the_list_or_another_cluster_is_no_description(content: object) -> None:
    with pytest.raises(ProvisionerError):
        parse_description(content, NAME)


_text = st.text(alphabet="ab-é\n\0", max_size=8)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=8,
)
_FIELDS = ("clusterStatus", "computeFleetStatus", "headNode", "failures", "clusterFsxId", "region", "ssh_user")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # judges the parsers, not the machine
@given(st.dictionaries(st.sampled_from(_FIELDS), _json))
def test_no_json_breaks_the_parsers_otherwise_than_by_our_errors(fields: dict[str, Any]) -> None:
    for parse in (lambda: parse_description(described(**fields), NAME), lambda: choose_keys(answer(**fields), NAME)):
        try:
            parse()
        except BbpwfError as error:
            assert isinstance(error, ProvisionerError)  # noqa: PT017  any other error is a failure by itself


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"message": "Too Many Requests"}', "Too Many Requests"),
        (b'{"Message": "User: arn is not authorized"}', "User: arn is not authorized"),
        (b"<class 'botocore.exceptions.ClientError'>", "<class 'botocore.exceptions.ClientError'>"),
        (b"two\n  lines\r\n", "two lines"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"[" * 100_000, "[" * 300 + "…"),
        (b"see https://b/c?X-Amz-Signature=0123456789abcdef0123", "see https://b/c?X-Amz-Signature=[redacted]"),
        (b'{"error": "invalid_grant", "error_description": "Token is not active"}', "Token is not active"),
        (b"", ""),
    ],
)
def test_what_the_other_side_said_is_short_and_clean(body: bytes, said: str) -> None:
    assert Reply(500, {}, body).said() == said


# -- patience


class Scripted(ProvisionerClient):
    """A provisioner whose every look is decided by the test; counts what it was asked."""

    def __init__(self, clock: ManualClock, look: Callable[[], ClusterDescription | None]) -> None:
        where = ProvisionerSettings.model_validate({"url": "http://127.0.0.1:9/x"})
        credentials = ReadOnlyCredentials("k", "s", None)
        super().__init__(where, project("v", "p"), credentials=lambda: credentials, clock=clock)
        self.look = look
        self.requests = 0
        self.remembered: list[ClusterKeys | None] = []

    def describe(self) -> ClusterDescription | None:
        return self.look()

    def request(self) -> ClusterKeys:
        self.requests += 1
        self.remembered.append(self.keys)
        self.keys = KEYS
        return KEYS


def description(status: str = "CREATE_COMPLETE", stack: str = "", **changes: Any) -> ClusterDescription:
    fields = {"fleet": "RUNNING", "head_node": HeadNode("10.0.0.7", "running"), **changes}
    return ClusterDescription(str(NAME), status, stack or status, **fields)


def setting(look: Callable[[], ClusterDescription | None]) -> tuple[Provisioning, Scripted, ManualClock]:
    clock = ManualClock()
    client = Scripted(clock, look)
    return Provisioning(client, ProvisionerSettings(), clock), client, clock


def test_minutes_of_absence_are_tolerated_by_default() -> None:
    clock = ManualClock()
    begun = clock.monotonic()
    client = Scripted(clock, lambda: description() if clock.monotonic() - begun > 480 else None)
    provisioning = Provisioning(client, ProvisionerSettings(), clock)
    assert provisioning.wait_until_ready() is not None
    assert client.requests == 1


def test_absence_ends_before_the_overall_limit() -> None:
    provisioning, client, clock = setting(lambda: None)
    begun = clock.monotonic()
    with pytest.raises(ClusterFailed, match="never appeared"):
        provisioning.wait_until_ready()
    assert 600 < clock.monotonic() - begun < 700
    assert client.requests == 1


@pytest.mark.parametrize(
    "found",
    [
        description("CREATE_IN_PROGRESS"),
        description("UPDATE_IN_PROGRESS"),
        description("HIBERNATING"),
        description(head_node=None),
        description(head_node=HeadNode("", "pending")),
        description(head_node=HeadNode("10.0.0.7", "stopping")),
        description("DELETE_IN_PROGRESS"),
    ],
)
def test_no_wait_is_longer_than_the_overall_limit(found: ClusterDescription) -> None:
    provisioning, _, clock = setting(lambda: found)
    begun = clock.monotonic()
    with pytest.raises(DeadlineExceeded, match="5400 s"):
        provisioning.wait_until_ready()
    assert 5400 < clock.monotonic() - begun < 5600


def test_an_unknown_status_is_named_while_we_wait() -> None:
    provisioning, _, _ = setting(lambda: description("HIBERNATING"))
    assert "HIBERNATING" in provisioning.step().message


@pytest.mark.parametrize(
    ("status", "stack", "usable"),
    [
        ("CREATE_COMPLETE", "", True),
        ("UPDATE_COMPLETE", "", True),
        ("UPDATE_FAILED", "UPDATE_ROLLBACK_COMPLETE", True),
        ("UPDATE_FAILED", "UPDATE_ROLLBACK_FAILED", False),
        ("CREATE_FAILED", "ROLLBACK_COMPLETE", False),
        ("DELETE_FAILED", "", False),
    ],
)
def test_which_clusters_can_be_used(status: str, stack: str, usable: bool) -> None:
    provisioning, _, _ = setting(lambda: description(status, stack))
    if usable:
        assert provisioning.step().phase is Phase.READY
    else:
        with pytest.raises(ClusterFailed, match=status):
            provisioning.step()


def test_nothing_is_requested_while_the_cluster_is_being_deleted() -> None:
    provisioning, client, _ = setting(lambda: description("DELETE_IN_PROGRESS", head_node=None))
    for _ in range(5):
        assert provisioning.step().phase is Phase.DELETING
    assert client.requests == 0


def test_known_keys_are_not_asked_for_again_unless_the_cluster_is_new() -> None:
    provisioning, client, _ = setting(description)
    client.keys = KEYS
    assert provisioning.step().phase is Phase.READY
    assert client.requests == 0
    looks = iter([None, description()])
    provisioning, client, _ = setting(lambda: next(looks))
    client.keys = KEYS
    assert provisioning.wait_until_ready() is not None
    assert client.remembered == [None]  # a new cluster has new keys: the old ones must not fill a gap


def test_cancelling_interrupts_a_long_pause_between_looks() -> None:
    provisioning, _, clock = setting(lambda: None)
    begun = clock.monotonic()
    assert provisioning.wait_until_ready(cancelled=lambda: clock.monotonic() - begun >= 3) is None
    assert clock.monotonic() - begun < 5  # where looks are 20 s apart
