"""From names and values that somebody sent to a Luigi task."""

from __future__ import annotations

import difflib
import importlib
import json
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import luigi
from luigi.parameter import OptionalParameterMixin, ParameterException

from bbpwf.errors import BbpwfError, InvalidConfig, InvalidParameter, UnknownTask, UnsafeUpload

TRACE_CHARS = 4000
"""Most characters of a traceback that an error quotes."""

TaskClass = type[luigi.Task]


def extend_path(folders: Iterable[str]) -> None:
    """Let modules be found in ``folders`` too, after everything that is installed: nothing can be shadowed."""
    for folder in folders:
        if folder and folder not in sys.path:
            sys.path.append(folder)


def import_module(name: str, *, attachments: str | None = None) -> ModuleType:
    """The task module ``name``.

    Raises:
        UnknownTask: there is no such module, or it fails to import; then with the end of its traceback.
        UnsafeUpload: an attachment has the name of an installed module, which is the one that was found.
    """
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise UnknownTask(f"{name[:200]!r} is not the name of a Python module")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UnknownTask(
                f"there is no module {error.name!r}",
                hint="Attach it, install it, or put its folder into BBPWF_SERVICE__WORKFLOWS_PATH.",
            ) from None
        raise _import_failed(name, error) from error
    except (Exception, SystemExit) as error:
        raise _import_failed(name, error) from error
    if attachments:
        _check_not_shadowed(module, name, Path(attachments))
    return module


def _import_failed(name: str, error: BaseException) -> UnknownTask:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "importlib" not in frame.filename and frame.filename != __file__]
    lines = traceback.format_list(own[-10:]) + traceback.format_exception_only(error)
    text = "".join(lines)[-TRACE_CHARS:].strip()
    return UnknownTask(f"the module {name!r} cannot be imported: {_last_line(error)}", hint=f"\n{text}")


def _check_not_shadowed(module: ModuleType, name: str, attachments: Path) -> None:
    top = name.split(".", 1)[0]
    attached = (attachments / f"{top}.py").exists() or (attachments / top).is_dir()
    found = getattr(sys.modules[top], "__file__", None) or ""
    if not attached or not found:
        return
    if not Path(found).resolve().is_relative_to(attachments.resolve()):
        raise UnsafeUpload(
            f"the attachment {top!r} has the name of an installed module",
            where=str(module.__name__),
            hint="Give it another name.",
        )


def find_task(module: ModuleType, name: str) -> TaskClass:
    """The task class ``name`` of a module.

    Raises:
        UnknownTask: there is none, or it is not something that can be launched.
    """
    found = getattr(module, name, None) if name.isidentifier() else None
    if isinstance(found, type) and issubclass(found, luigi.Task):
        if is_abstract(found):
            raise UnknownTask(f"{name} of {module.__name__} is a base class: it cannot be launched")
        return found
    known = sorted(tasks_of(module))
    near = difflib.get_close_matches(name, known, 1, 0.6)
    hint = f"Did you mean {near[0]!r}?" if near else f"Its tasks: {', '.join(known) or 'none'}."
    raise UnknownTask(f"the module {module.__name__!r} has no task {name[:200]!r}", hint=hint)


def tasks_of(module: ModuleType) -> dict[str, TaskClass]:
    """The launchable tasks that a module defines, itself or in its submodules, by name."""
    own = (module.__name__, f"{module.__name__}.")
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, luigi.Task)
        and (value.__module__ == own[0] or value.__module__.startswith(own[1]))
        and is_launchable(value)
    }


def is_abstract(cls: TaskClass) -> bool:
    """Whether the class is meant to be derived from: it says so itself, or has methods to fill in."""
    return vars(cls).get("launchable") is False or bool(getattr(cls, "__abstractmethods__", ()))


def is_launchable(cls: TaskClass) -> bool:
    """Whether a person may want to launch the task: no base, no configuration, not external, not a test's."""
    parts = cls.__module__.split(".")
    return not (
        is_abstract(cls)
        or issubclass(cls, (luigi.Config, luigi.ExternalTask))
        or cls.__name__.startswith("_")
        or "tests" in parts
        or any(part.startswith("test_") for part in parts)
    )


def build(cls: TaskClass, params: Mapping[str, Any]) -> luigi.Task:
    """An instance of the task. Values are what JSON gives, or strings as on Luigi's command line.

    Raises:
        InvalidParameter: one is unknown, ill-typed or missing; names it.
        InvalidConfig: a value that comes from a configuration file is not valid.
    """
    parameters = dict(cls.get_params())
    family = cls.get_task_family()
    values: dict[str, Any] = {}
    for given, value in params.items():
        name = given.replace("-", "_")
        if name not in parameters:
            near = difflib.get_close_matches(name, list(parameters), 1, 0.6)
            hint = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(parameters) or 'none'}."
            raise InvalidParameter(f"{family} has no parameter {given[:200]!r}", where=family, hint=hint)
        if name in values:
            raise InvalidParameter(f"{family}: {name} is given twice", where=family)
        values[name] = parse_value(family, name, parameters[name], value)
    missing = []
    for name, parameter in parameters.items():
        if name not in values:
            try:
                if not parameter.has_task_value(family, name):
                    missing.append(name)
            except Exception as error:
                raise InvalidConfig(f"[{family}] {name} is not valid: {_last_line(error)}") from error
    if missing:
        named = ", ".join(missing)
        raise InvalidParameter(
            f"{family} needs {'a value' if len(missing) == 1 else 'values'} for {named}",
            where=family,
            hint=f"Give it as a parameter, or in the section [{family}] of a config.",
        )
    try:
        return cls(**values)
    except BbpwfError:
        raise
    except ParameterException as error:
        raise InvalidParameter(f"{family}: {error}", where=family) from error
    except Exception as error:
        trace = "".join(traceback.format_exception(error))[-TRACE_CHARS:].strip()
        raise InvalidParameter(
            f"{family} does not accept its parameters: {_last_line(error)}", where=family, hint=f"\n{trace}"
        ) from error


def parse_value(family: str, name: str, parameter: Any, value: Any) -> Any:
    """One parameter's value from JSON or text.

    Raises:
        InvalidParameter: it is not what the parameter takes; says what would be.
    """
    try:
        return parameter.normalize(_parsed(parameter, value))
    except Exception as error:
        shown = json.dumps(value, default=str)[:200]
        raise InvalidParameter(
            f"{family}: {name}={shown} is not {expected(parameter)}: {_last_line(error)}", where=family
        ) from error


def _parsed(parameter: Any, value: Any) -> Any:
    """``value`` as the parameter's own type. Raises whatever its parser raises."""
    parse: Any = parameter.parse
    if value is None:
        if isinstance(parameter, OptionalParameterMixin):
            return None
        raise ValueError("null is no value here")
    if isinstance(value, str):
        return parse(value)
    if isinstance(value, bool) != isinstance(parameter, luigi.BoolParameter):
        raise ValueError(f"it is {'a boolean' if isinstance(value, bool) else type(value).__name__}")
    if isinstance(value, bool):
        return value
    if isinstance(value, (list, dict)):
        wanted = luigi.DictParameter if isinstance(value, dict) else (luigi.ListParameter, luigi.ChoiceListParameter)
        if not isinstance(parameter, wanted):
            raise TypeError("it is a list" if isinstance(value, list) else "it is an object")
        if isinstance(parameter, luigi.ChoiceListParameter):
            return parse(",".join(map(str, value)))
        return parse(json.dumps(value))
    if isinstance(parameter, luigi.IntParameter) and value != int(value):
        raise ValueError("it has a fraction")
    numeric = (luigi.IntParameter, luigi.FloatParameter, luigi.NumericalParameter, luigi.ChoiceParameter)
    if not isinstance(parameter, (*numeric, luigi.TimeDeltaParameter)):
        raise TypeError("it is a number")
    return parse(str(int(value)) if isinstance(parameter, luigi.IntParameter) else str(value))


def expected(parameter: Any) -> str:
    """What a parameter takes, in words."""
    if isinstance(parameter, luigi.ChoiceParameter):
        return f"one of {', '.join(map(str, sorted(parameter._choices, key=str)))}"
    for kind, words in _WORDS:
        if isinstance(parameter, kind):
            return words
    return "a string" if type(parameter) is luigi.Parameter else f"a {type(parameter).__name__} value"


_WORDS: tuple[tuple[Any, str], ...] = (
    (luigi.IntParameter, "an integer"),
    (luigi.FloatParameter, "a number"),
    (luigi.NumericalParameter, "a number in its range"),
    (luigi.BoolParameter, "true or false"),
    (luigi.DictParameter, "a JSON object"),
    (luigi.ListParameter, "a JSON list"),
    (luigi.DateParameter, "a date (YYYY-MM-DD)"),
    (luigi.TimeDeltaParameter, "a duration"),
    (luigi.OptionalParameter, "a string"),
)


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
