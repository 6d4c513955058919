"""``python -m benchmarks [NAME …]``: measure, and keep the figures when everything was measured."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import engine, results, scheduling, service, throughput
from benchmarks.results import Figure
from benchmarks.site import Site, site

Benchmark = Callable[[Site], Iterator[Figure]]

ORDINARY: dict[str, Benchmark] = {
    "fan_out": throughput.fan_out,
    "chain": throughput.chain,
    "submissions": engine.submissions,
    "graphs": scheduling.graphs,
    "service": service.service,
}
CROWDED: dict[str, Benchmark] = {"live_jobs": engine.live_jobs}
"""Benchmarks that need a controller with room for many jobs."""


def main() -> int:
    """Run what was asked for; 0 if every bar was reached."""
    names = [*ORDINARY, *CROWDED]
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*names, []], metavar="NAME", help=f"of {', '.join(names)}")
    wanted = parser.parse_args().names or names
    figures: list[Figure] = []
    for group, options in ((ORDINARY, {}), (CROWDED, {"max_job_count": 60_000})):
        figures += _measure([group[name] for name in wanted if name in group], options)
    if set(wanted) == set(names):
        results.save(figures)
    return 0 if all(figure.passes for figure in figures) else 1


def _measure(benchmarks: list[Benchmark], options: dict[str, Any]) -> list[Figure]:
    if not benchmarks:
        return []
    figures = []
    with site(**options) as cluster:
        for benchmark in benchmarks:
            for figure in benchmark(cluster):
                figures.append(figure)
                bar = "" if figure.bar is None else f"  ({'reached' if figure.passes else 'MISSED'}: {figure.bar:g})"
                sys.stdout.write(f"{figure.name}: {figure.value:.3g} {figure.unit}{bar}\n")
                sys.stdout.flush()
    return figures


if __name__ == "__main__":
    sys.exit(main())
