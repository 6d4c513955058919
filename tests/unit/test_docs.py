"""The documentation says what is so: generated pages are current, links lead somewhere, commands exist and run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from bbpwf.cli.main import app
from service.notices import signed

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").glob("*.md")]
)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def test_generated_pages_are_current() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nrun: python docs/generate.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`((?:bbpwf|service|sandbox|tasks|benchmarks|config|docs)/[\w./-]+)`", page.read_text())
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing == []


def commands() -> list[list[str]]:
    """Every ``bbpwf`` command that a console block shows."""
    found = []
    for page in PAGES:
        for block in blocks(page, "console"):
            for line in block.splitlines():
                text = line.removeprefix("$ ").split("#")[0].strip()
                if text.startswith("bbpwf "):
                    found.append(shlex.split(text.split("|")[0]))
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_that_is_shown_exists(command: list[str]) -> None:
    group = typer.main.get_command(app)
    words = []
    for word in command[1:]:
        subcommands = getattr(group, "commands", {})
        if word not in subcommands:
            break
        group = subcommands[word]
        words.append(word)
    assert words, f"{command} names no command"
    shown = CliRunner().invoke(app, [*words, "--help"]).output
    options = [word.split("=")[0] for word in command if word.startswith("--")]
    if words not in (["run"], ["launch"]):  # these take the parameters of any task
        assert [o for o in options if o not in shown] == []


def test_the_first_task_of_the_readme_runs(tmp_path: Path) -> None:
    (task,) = blocks(ROOT / "README.md", "python")
    (tmp_path / "hello.py").write_text(task)
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "BBPWF_STATE_DIR": str(tmp_path / "state")}
    done = subprocess.run(
        [sys.executable, "-m", "bbpwf.cli.main", "run", "hello", "Hello", "--who", "you"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (made,) = (tmp_path / "state").glob("data/runs/*/hello-you.txt")
    assert made.read_text() == "hello you\n"


def test_what_receivers_of_webhooks_are_told_to_check_holds() -> None:
    (code,) = [each for each in blocks(ROOT / "docs" / "clients.md", "python") if "def is_ours" in each]
    shown: dict[str, Any] = {}
    exec(code, shown)
    headers = signed("a key of the instance", "n1", 1_700_000_000, b"{}")
    assert shown["is_ours"](b"a key of the instance", headers, b"{}")
    assert not shown["is_ours"](b"a key of the instance", headers, b"{ }")
    assert not shown["is_ours"](b"another key", headers, b"{}")
