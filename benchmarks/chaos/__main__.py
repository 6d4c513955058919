"""``python -m benchmarks.chaos --faults 1000 --seed 1``: a storm, then the truth about it, in one JSON file."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.chaos.run import Extent, run

_ENOUGH = 1000
"""From so many faults on, every named point is to be hit."""
_OUT = Path(__file__).parents[1] / "chaos.json"


def main() -> int:
    """Run, print, write; 1 when anything was lost, doubled, went back or was left over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=1000, help="how many faults are to happen")
    parser.add_argument("--seed", type=int, default=1, help="the same seed makes the same choices")
    parser.add_argument("--only-engine", action="store_true", help="no service, no local jobs, not every named point")
    parser.add_argument("--sites", type=int, default=2, help="clusters that are broken at once, each with its agents")
    parser.add_argument("--limit", type=float, default=570.0, help="seconds after which the storm ends in any case")
    parser.add_argument("--slowest", type=float, default=60.0, help="seconds for which slurmctld is once stopped")
    parser.add_argument("--out", type=Path, default=_OUT, help="where the result is written")
    parser.add_argument("--keep", type=Path, help="folder to which ledger, tally and logs are copied at the end")
    given = parser.parse_args()
    all_ = not given.only_engine
    extent = Extent(
        given.faults,
        given.limit,
        given.slowest,
        sites=given.sites,
        service=all_,
        local=all_,
        all_points=all_ and given.faults >= _ENOUGH,
    )
    report = run(extent, given.seed, keep=given.keep, say=lambda text: print(text, flush=True))
    if report.result["faults"] < given.faults:
        report.complaints.append(f"only {report.result['faults']} faults happened within {given.limit:.0f} s")
    for complaint in report.complaints:
        print(complaint)
    given.out.write_text(json.dumps(report.result, indent=2) + "\n")
    print(json.dumps(report.result))
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
