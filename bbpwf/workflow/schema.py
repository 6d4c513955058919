"""A task's parameters as JSON Schema, for forms and clients."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import luigi
from luigi.parameter import OptionalParameterMixin, ParameterVisibility

from bbpwf.workflow.arrays import ArrayTask
from bbpwf.workflow.building import TaskClass
from bbpwf.workflow.parameters import GROUPS
from bbpwf.workflow.tasks import JobTask

DOC_CHARS = 4000
_LUIGIS_CHOICES = re.compile(r"\s*Choices: \{[^}]*\}\Z")  # Luigi adds them to descriptions, in any order

_TYPES: tuple[tuple[Any, dict[str, Any]], ...] = (
    (luigi.IntParameter, {"type": "integer"}),
    (luigi.FloatParameter, {"type": "number"}),
    (luigi.NumericalParameter, {"type": "number"}),
    (luigi.BoolParameter, {"type": "boolean"}),
    (luigi.DictParameter, {"type": "object"}),
    (luigi.ListParameter, {"type": "array"}),
    (luigi.ChoiceListParameter, {"type": "array"}),
    (luigi.DateParameter, {"type": "string", "format": "date"}),
    (luigi.TimeDeltaParameter, {"type": "string", "format": "duration"}),
)


def describe(module: str, cls: TaskClass) -> dict[str, Any]:
    """Everything a client needs to offer the task: ``parameters`` is a JSON Schema of ``workflow_params``."""
    properties: dict[str, Any] = {}
    required: list[str] = []
    family = cls.get_task_family()
    for name, parameter in cls.get_params():
        if parameter.visibility == ParameterVisibility.PRIVATE:
            continue
        properties[name] = parameter_schema(family, name, parameter)
        if "default" not in properties[name]:
            required.append(name)
    doc = inspect.cleandoc(cls.__dict__.get("__doc__") or "")[:DOC_CHARS]
    return {
        "name": f"{module}:{cls.__name__}",
        "module": module,
        "task": cls.__name__,
        "family": family,
        "kind": "array" if issubclass(cls, ArrayTask) else "job" if issubclass(cls, JobTask) else "local",
        "title": doc.splitlines()[0] if doc else cls.__name__,
        "description": doc,
        "parameters": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        },
    }


def parameter_schema(family: str, name: str, parameter: Any) -> dict[str, Any]:
    """The schema of one parameter. ``x-significant``: whether another value makes another task."""
    schema: dict[str, Any] = {"type": "string"}
    for kind, found in _TYPES:
        if isinstance(parameter, kind):
            schema = dict(found)
            break
    if isinstance(parameter, luigi.NumericalParameter):
        schema.update(_range(parameter))
    choices = _choices(parameter)
    if choices is not None:
        if schema["type"] == "array":
            schema["items"] = {"enum": choices}
        else:
            schema = {"enum": choices}
    if isinstance(parameter, OptionalParameterMixin):
        schema = _nullable(schema)
    words = _LUIGIS_CHOICES.sub("", parameter.description or "")
    if words:
        schema["description"] = words
    schema["x-significant"] = bool(parameter.significant)
    schema["x-parameter"] = type(parameter).__name__
    if name in GROUPS:
        schema["x-group"] = GROUPS[name]
    if parameter.has_task_value(family, name):
        schema["default"] = _plain(parameter, parameter.task_value(family, name))
    return schema


def _range(parameter: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "integer" if parameter._var_type is int else "number"}
    if parameter._min_value != float("-inf"):
        including = parameter._left_op(parameter._min_value, parameter._min_value)
        found["minimum" if including else "exclusiveMinimum"] = parameter._min_value
    if parameter._max_value != float("inf"):
        including = parameter._right_op(parameter._max_value, parameter._max_value)
        found["maximum" if including else "exclusiveMaximum"] = parameter._max_value
    return found


def _choices(parameter: Any) -> list[Any] | None:
    if isinstance(parameter, (luigi.EnumParameter, luigi.EnumListParameter)):
        return [member.name for member in parameter._enum]
    if isinstance(parameter, luigi.ChoiceParameter):
        return sorted(parameter._choices, key=str)
    return None


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    return {**schema, "type": [schema["type"], "null"]}


def _plain(parameter: Any, value: Any) -> Any:
    """A default as JSON: itself if it is plain, else the way Luigi writes it."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None  # noqa: PLR0124 NaN is no JSON
    text = parameter.serialize(value)
    if isinstance(parameter, (luigi.DictParameter, luigi.ListParameter)):
        return json.loads(text)
    return text
