"""`python -m studies.leaderboard`: measures every schedule on the same work, but lines of the record; resumable."""

import argparse
from pathlib import Path

from entropic.files import cache
from studies.leaderboard import PLAN, SCHEDULES, SOLVERS, WORKS, Store, fill, from_table
from studies.report import read_recorded


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m studies.leaderboard",
        description="Measure every schedule on the same work, but for what book/results has; resumable.",
    )
    parser.add_argument("works", nargs="*", help=f"of {', '.join(WORKS)}; none: the whole plan of the book")
    parser.add_argument("--store", type=Path, default=cache() / "leaderboard", help="a folder")
    parser.add_argument("--nfe", type=int, nargs="+", default=[4, 8, 16, 32, 64], help="network calls")
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS)
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES)
    parser.add_argument("--runs", type=int, help="at most so many runs")
    parser.add_argument("--anew", action="store_true", help="measure lines that book/results has, too")
    parser.add_argument("--share", default="0/1", help="i/k: the i-th of k processes, from 0 on")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.works if name not in WORKS]
    if unknown:
        parser.error(f"works: {unknown[0]!r} is none of {', '.join(WORKS)}")
    try:
        store = Store(given.store, given.share)
    except ValueError as error:
        parser.error(str(error))
    recorded = None if given.anew else read_recorded("leaderboard", "cells")
    known = from_table(recorded[1]) if recorded else []
    plan = [(name, given.nfe, given.solvers, given.runs, SCHEDULES) for name in given.works] or PLAN
    for name, nfe, solvers, runs, schedules in plan:
        fill(
            WORKS[name](),
            store,
            nfe=nfe,
            solvers=solvers or tuple(SOLVERS),
            schedules=given.schedules or schedules,
            runs=runs,
            known=known,
        )


if __name__ == "__main__":
    main()
