"""Which parameters of a task may have any value of their kind, so that nobody needs to build the task to know."""

from __future__ import annotations

import luigi
from luigi.parameter import ParameterVisibility
from luigi.task_register import Register

from bbpwf.workflow.building import TaskClass
from bbpwf.workflow.tasks import JobTask

_KINDS = {
    luigi.Parameter: "string",
    luigi.IntParameter: "integer",
    luigi.FloatParameter: "number",
    luigi.BoolParameter: "boolean",
}
"""Of exactly these types: a derived one may refuse values."""
_FRAMEWORK = ("luigi", "bbpwf.workflow", "abc", "builtins", "typing")
_LATER = frozenset(
    {"command", "output", "requires", "complete", "run", "elements", "components", "resources", "priority"}
)
"""What task classes fill in, and what is not called while a task is built."""
_PLAIN = (str, int, float, tuple, type(None), luigi.Parameter)
_BUILDING = ("__new__", "__init__", "__getattribute__", "__getattr__", "__setattr__", "__hash__", "__eq__")


def free_parameters(cls: TaskClass) -> dict[str, str]:
    """Name and kind (``string``, ``integer``, ``number``, ``boolean``) of each such parameter of the task.

    Empty when the task has code of its own that runs while it is built: it may refuse what it likes.
    """
    if type(cls) is not Register and type(cls).__module__.split(".")[0] not in {"luigi", "bbpwf", "abc"}:
        return {}
    for each in cls.__mro__:
        if _is_framework(each):
            continue
        for name, value in vars(each).items():
            inherited = hasattr(JobTask, name) and name not in _LATER and not name.startswith(("__", "_abc_"))
            if (name in _BUILDING and value is not None) or (inherited and not isinstance(value, _PLAIN)):
                return {}
    own = {name for each in cls.__mro__ if not _is_framework(each) for name in vars(each)}
    return {
        name: _KINDS[type(parameter)]
        for name, parameter in cls.get_params()
        if name in own
        and not hasattr(JobTask, name)
        and type(parameter) in _KINDS
        and parameter.visibility != ParameterVisibility.PRIVATE
    }


def _is_framework(cls: type) -> bool:
    return any(cls.__module__ == name or cls.__module__.startswith(f"{name}.") for name in _FRAMEWORK)
