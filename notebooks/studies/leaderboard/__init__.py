"""Every schedule on the same work: exact laws where there are any, images where there are none, and who wins where.

    python -m studies.leaderboard mixtures image-mixture network [--store FOLDER] [--share 0/2]

fills the store with one line for each distance of a measured cell. It goes on where it was stopped, and several
processes may share the work. The page on the leaderboard reads it.
"""

from studies.leaderboard.names import (
    KL_OF_DATA,
    KL_OF_GENERATED,
    PATH,
    PATH_RMS,
    SHORT,
    SOLVERS,
    distance_name,
)
from studies.leaderboard.plan import CONVERGED, PLAN, fill
from studies.leaderboard.schedules import FORMULAS, OURS, RIVALS, SCHEDULES, TUNED
from studies.leaderboard.standing import (
    Cell,
    cells,
    contest,
    from_table,
    made_for,
    merged,
    noise,
    ranks,
    standing,
    table,
)
from studies.leaderboard.store import Store
from studies.leaderboard.works import (
    WORKS,
    Work,
    galaxies,
    gaussians,
    image_mixture,
    mixtures,
    network,
    varying_scale,
)

__all__ = [
    "CONVERGED",
    "FORMULAS",
    "KL_OF_DATA",
    "KL_OF_GENERATED",
    "OURS",
    "PATH",
    "PATH_RMS",
    "PLAN",
    "RIVALS",
    "SCHEDULES",
    "SHORT",
    "SOLVERS",
    "TUNED",
    "WORKS",
    "Cell",
    "Store",
    "Work",
    "cells",
    "contest",
    "distance_name",
    "fill",
    "from_table",
    "galaxies",
    "gaussians",
    "image_mixture",
    "made_for",
    "merged",
    "mixtures",
    "network",
    "noise",
    "ranks",
    "standing",
    "table",
    "varying_scale",
]
