"""The deployment templates grant nothing by wildcard, and open nothing but the API."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).parents[3] / "container"
TEMPLATES = ("gateway.yaml", "project.yaml")

NAMED_BY_AWS = (
    r":task/\$\{Cluster\}/\*",  # ECS makes ids of tasks
    r":log-group:\$\{\w+Log\}:log-stream:\*",  # Lambda makes names of log streams
    r":secret:\$\{ClusterName\}(_sim)?-\?{6}",  # Secrets Manager adds six characters to a name
    r":s3:::\$\{ScratchBucket\}/\$\{VirtualLabId\}/\$\{ProjectId\}/\*",  # what the project's own runs wrote
)
"""The only ends of an ARN that may be open: who grants cannot know them."""
MANAGED = {"AWSLambdaVPCAccessExecutionRole", "AmazonECSTaskExecutionRolePolicy"}
"""AWS's own policies for what it does itself on our behalf, which has no narrower form."""


class _Loader(yaml.SafeLoader):
    """Reads CloudFormation's short forms as their long ones."""


def _short_form(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    value: Any
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)  # type: ignore[arg-type]  # the third kind of node there is
    return {suffix if suffix == "Ref" else f"Fn::{suffix}": value}


_Loader.add_multi_constructor("!", _short_form)


def load(name: str) -> dict[str, Any]:
    content = yaml.load((HERE / name).read_text(), Loader=_Loader)
    assert isinstance(content, dict)
    return content


def every(node: Any, key: str) -> Iterator[Any]:
    """Every value of a key, wherever it is."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from every(value, key)
    elif isinstance(node, list):
        for each in node:
            yield from every(each, key)


def statements(name: str) -> list[dict[str, Any]]:
    found = [each for several in every(load(name), "Statement") for each in several]
    assert len(found) > 3, "the policies were not found"
    return found


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_action_is_named(name: str) -> None:
    for statement in statements(name):
        for action in listed(statement["Action"]):
            assert re.fullmatch(r"[a-z0-9-]+:[A-Za-z0-9]+", action), action
        assert "NotAction" not in statement
        assert "NotResource" not in statement


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_resource_is_named_as_far_as_it_can_be(name: str) -> None:
    for statement in statements(name):
        if statement["Effect"] == "Deny" or "Principal" in statement:
            continue
        for resource in listed(statement["Resource"]):
            text = json.dumps(resource)
            closed = text
            for pattern in NAMED_BY_AWS:
                closed = re.sub(pattern, "", closed)
            assert not re.search(r"[*?]", closed), f"{statement['Action']} on {text}"


@pytest.mark.parametrize("name", TEMPLATES)
def test_aws_own_policies_are_used_only_where_nothing_narrower_exists(name: str) -> None:
    for several in every(load(name), "ManagedPolicyArns"):
        for each in several:
            assert json.dumps(each).rstrip('"}').rpartition("/")[2] in MANAGED


def test_roles_are_passed_and_tasks_started_under_conditions() -> None:
    by_action = {action: each for each in statements("project.yaml") for action in listed(each["Action"])}
    assert by_action["iam:PassRole"]["Condition"]["StringEquals"] == {"iam:PassedToService": "ecs-tasks.amazonaws.com"}
    assert "ecs:cluster" in by_action["ecs:RunTask"]["Condition"]["ArnEquals"]
    assert by_action["ecs:RunTask"]["Resource"] == {"Ref": "Task"}


def test_the_signing_key_is_the_authorizers_alone() -> None:
    resources = load("gateway.yaml")["Resources"]
    readers = [name for name, each in resources.items() if "SigningKeySecretArn" in json.dumps(each)]
    assert sorted(readers) == ["Authorize", "AuthorizeRole"]


def test_every_route_needs_the_authorizer_and_no_decision_is_kept() -> None:
    resources = load("gateway.yaml")["Resources"]
    for each in resources.values():
        if each["Type"] == "AWS::ApiGatewayV2::Route":
            assert each["Properties"]["AuthorizationType"] == "CUSTOM"
            assert each["Properties"]["AuthorizerId"] == {"Ref": "Authorizer"}
    assert resources["Authorizer"]["Properties"]["AuthorizerResultTtlInSeconds"] == 0


def test_nothing_of_the_network_is_open_to_everybody() -> None:
    for name in TEMPLATES:
        for rules in every(load(name), "SecurityGroupIngress"):
            for rule in rules:
                assert "CidrIp" not in rule
                assert "SourceSecurityGroupId" in rule


def test_an_instance_is_contained() -> None:
    (task,) = [each for each in load("project.yaml")["Resources"].values() if each["Type"].endswith("TaskDefinition")]
    (container,) = task["Properties"]["ContainerDefinitions"]
    assert container["ReadonlyRootFilesystem"] is True
    assert not {"CHOWN", "KILL", "SETGID", "SETUID"} & set(container["LinuxParameters"]["Capabilities"]["Drop"])
    named = {each["Name"] for each in container["Environment"]}
    assert not [each for each in named if re.search("SECRET|PASSWORD|DATABASE", each)], (
        "secrets come from their manager"
    )
    assert "BBPWF_SERVICE__PASS_KEYS" in named


def test_the_environment_of_templates_is_made_of_settings_that_exist() -> None:
    from bbpwf.settings import Settings

    known: set[str] = set()
    for name, info in Settings.model_fields.items():
        fields = getattr(info.annotation, "model_fields", None)
        known |= {f"BBPWF_{name}__{each}".upper() for each in fields} if fields else {f"BBPWF_{name}".upper()}
    for template in TEMPLATES:
        text = (HERE / template).read_text()
        used = set(re.findall(r"\bBBPWF_[A-Z0-9_]+", text))
        assert used
        assert used <= known
