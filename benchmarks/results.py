"""Figures, their bars, and the two files that keep them: ``results.json`` and the table in ``README.md``."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent
_BEGIN, _END = "<!-- results -->", "<!-- end of results -->"


@dataclass(frozen=True)
class Figure:
    """One measured figure. ``bar`` is what it must reach: at most if ``at_most``, else at least; ``None`` for none."""

    name: str
    value: float
    unit: str
    bar: float | None = None
    at_most: bool = True

    @property
    def passes(self) -> bool:
        """Whether the bar is reached; True where there is none."""
        if self.bar is None:
            return True
        return self.value <= self.bar if self.at_most else self.value >= self.bar


def save(figures: Sequence[Figure]) -> None:
    """Write both files."""
    listed = [
        {**{k: v for k, v in asdict(f).items() if k != "at_most"}, "value": round(f.value, 4), "passes": f.passes}
        for f in figures
    ]
    (HERE / "results.json").write_text(json.dumps(listed, indent=1) + "\n")
    page = HERE / "README.md"
    before, _, rest = page.read_text().partition(_BEGIN)
    after = rest.partition(_END)[2]
    page.write_text(f"{before}{_BEGIN}\n\n{table(figures)}\n{_END}{after}")


def table(figures: Sequence[Figure]) -> str:
    """The figures as Markdown, with the machine they come from."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = [
        f"Measured on {os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}.",
        "",
        "| figure | value | bar | |",
        "|---|---|---|---|",
    ]
    for f in figures:
        bar = "" if f.bar is None else f"{'≤' if f.at_most else '≥'} {f.bar:g} {f.unit}"
        lines.append(f"| {f.name} | {f.value:.3g} {f.unit} | {bar} | {'' if f.bar is None else _word(f)} |")
    return "\n".join(lines) + "\n"


def _word(figure: Figure) -> str:
    return "reached" if figure.passes else "**missed**"
