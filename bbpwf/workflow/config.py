"""A launch's Luigi ``.cfg``: one section a task, on top of Luigi's own configuration.

Luigi ignores what it does not know; a misspelt option then costs a night. Here every section and option must be
one that the loaded tasks have. ``kebab-case`` and ``snake_case`` name the same option. ``[DEFAULT]`` holds for
every task that has a parameter of that name, with or without a section of its own, and for ``%(name)s``.
"""

from __future__ import annotations

import configparser
import contextlib
import difflib
import logging
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import luigi
from luigi.configuration.cfg_parser import LuigiConfigParser
from luigi.parameter import UnconsumedParameterWarning
from luigi.task_register import Register

from bbpwf.errors import InvalidConfig

_log = logging.getLogger(__name__)

MAX_BYTES = 1024 * 1024

_FREE_SECTIONS = frozenset({"resources", "logging", "retcode", "email", "smtp"})
"""Luigi's sections that have no class with parameters behind them."""


@contextlib.contextmanager
def luigi_config(cfg: Path | None) -> Iterator[LaunchConfig]:
    """Inside the block, Luigi's configuration is its own files and, above them, ``cfg``.

    Raises:
        InvalidConfig: the file is missing, too large or malformed; says where.
    """
    holder: Any = LuigiConfigParser
    before = holder._instance
    parser = LuigiConfigParser()
    holder._instance = parser
    try:
        with warnings.catch_warnings():
            # [DEFAULT] is shared by all tasks; what no task knows is refused by LaunchConfig.check
            warnings.filterwarnings("ignore", category=UnconsumedParameterWarning)
            try:
                parser.read([path for path in LuigiConfigParser._config_paths if not path.endswith("client.cfg")])
            except configparser.Error as error:
                raise InvalidConfig(f"Luigi's own configuration is malformed: {_one_line(error)}") from error
            yield LaunchConfig(parser, cfg)
    finally:
        holder._instance = before


class LaunchConfig:
    """The ``.cfg`` of one launch, already merged into Luigi's configuration."""

    def __init__(self, parser: LuigiConfigParser, cfg: Path | None) -> None:
        self._parser: Any = parser
        self._name = cfg.name if cfg else ""
        self._own = _read(cfg) if cfg else None
        if self._own is not None:
            for section, options in self._own.items():
                for option, value in options.items():
                    self._set(section, option, value)

    def _set(self, section: str, option: str, value: str) -> None:
        if section != "DEFAULT" and not self._parser.has_section(section):
            self._parser.add_section(section)
        try:
            for name in {option, option.replace("-", "_")}:  # both, for references by %(name)s
                configparser.ConfigParser.set(self._parser, section, name, value)
        except ValueError as error:  # a lone %, which starts a reference to another option
            raise InvalidConfig(
                f"[{section}] {option}: {value!r} has a single %", where=self._name, hint="Write %% for a percent sign."
            ) from error

    def set_default(self, section: str, option: str, value: str) -> None:
        """Set what no file sets."""
        if not self._parser.has_option(section, option):
            self._parser.set(section, option, value)

    def check(self) -> None:
        """Hold the file against the tasks that are loaded by now, and let ``[DEFAULT]`` reach all of them.

        Raises:
            InvalidConfig: names the section or option, and the nearest known name.
        """
        classes = _classes()
        tasks = {family: cls for family, cls in classes.items() if not cls.__module__.startswith(("luigi.", "bbpwf."))}
        for family in tasks:
            if not self._parser.has_section(family):
                self._parser.add_section(family)
        if self._own is None:
            return
        for section, options in self._own.items():
            if section == "DEFAULT":
                continue
            if section in tasks:
                self._check_task(section, tasks[section], options)
            elif section not in classes and section not in _FREE_SECTIONS:
                raise InvalidConfig(
                    f"no task has the name of the section [{section}]",
                    where=self._name,
                    hint=_nearest(section, tasks) or f"Known tasks: {', '.join(sorted(tasks)) or 'none'}.",
                )
            elif section in classes and classes[section].__module__.startswith("bbpwf."):
                raise InvalidConfig(
                    f"[{section}] is a base class, and sections are not inherited",
                    where=self._name,
                    hint="Use the section of each task, or [DEFAULT] for all of them.",
                )
        self._check_defaults(tasks)

    def _check_task(self, section: str, cls: type[luigi.Task], options: dict[str, str]) -> None:
        parameters = dict(cls.get_params())
        spelt: dict[str, str] = {}
        for option in options:
            name = option.replace("-", "_")
            if name not in parameters:
                raise InvalidConfig(
                    f"[{section}] has no option {option!r}",
                    where=self._name,
                    hint=_nearest(name, parameters) or f"Its options are: {', '.join(sorted(parameters))}.",
                )
            if name in spelt:
                raise InvalidConfig(f"[{section}] has both {spelt[name]!r} and {option!r}", where=self._name)
            spelt[name] = option
            self._parse(section, option, parameters[name])

    def _check_defaults(self, tasks: dict[str, type[luigi.Task]]) -> None:
        defaults = (self._own or {}).get("DEFAULT", {})
        text = "\n".join(value for options in (self._own or {}).values() for value in options.values())
        for option in defaults:
            name = option.replace("-", "_")
            users = [family for family, cls in tasks.items() if name in dict(cls.get_params())]
            for family in users:
                self._parse(family, name, dict(tasks[family].get_params())[name])
            if not users and f"%({option})s" not in text:
                _log.warning("%s: no task uses %s of [DEFAULT]", self._name, option)

    def _parse(self, section: str, option: str, parameter: Any) -> None:
        try:
            raw = self._parser.get(section, option)
        except configparser.Error as error:
            raise InvalidConfig(f"[{section}] {option}: {_one_line(error)}", where=self._name) from error
        try:
            parameter.normalize(parameter.parse(raw))
        except Exception as error:
            raise InvalidConfig(
                f"[{section}] {option}: {raw[:200]!r} is not valid: {_one_line(error)}", where=self._name
            ) from error


def _read(cfg: Path) -> dict[str, dict[str, str]]:
    parser = configparser.RawConfigParser(strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # the way configparser wants it
    try:
        if cfg.stat().st_size > MAX_BYTES:
            raise InvalidConfig(f"the config is larger than {MAX_BYTES} bytes", where=cfg.name)
        parser.read_string(cfg.read_text(encoding="utf-8"), source=cfg.name)
    except OSError as error:
        raise InvalidConfig(f"the config {cfg.name!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidConfig("the config is not UTF-8 text", where=cfg.name) from error
    except configparser.Error as error:
        raise InvalidConfig(f"the config is malformed: {_one_line(error)}", where=cfg.name) from error
    own = {"DEFAULT": dict(parser.defaults())} if parser.defaults() else {}
    return own | {section: dict(parser._sections[section]) for section in parser.sections()}  # type: ignore[attr-defined]  # without [DEFAULT] mixed in there is no public way


def _classes() -> dict[str, type[luigi.Task]]:
    """Every Luigi task and configuration class that is loaded, by family; the last of a name."""
    return {cls.get_task_family(): cls for cls in Register._reg if cls._visible_in_registry}


def _nearest(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), 1, 0.6)
    return f"Did you mean {found[0]!r}?" if found else ""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
