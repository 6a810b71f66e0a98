"""The paper's tables on published networks: error curve, schedules, images, features, distances; all resumable.

    torchrun --nproc-per-node N -m studies.published imagenet512 [-p parameter value]

makes what the tables of that experiment need; the page `paper_tables` then reads it and shows it.
"""

from studies.published.costs import show_costs
from studies.published.experiment import EXPERIMENTS, Experiment
from studies.published.filling import error_curve, fill, gallery, rows, schedules
from studies.published.page import (
    beside_paper,
    claim,
    results,
    show_behind,
    show_gallery,
    show_paper,
    show_schedules,
    show_tables,
)

__all__ = [
    "EXPERIMENTS",
    "Experiment",
    "beside_paper",
    "claim",
    "error_curve",
    "fill",
    "gallery",
    "results",
    "rows",
    "schedules",
    "show_behind",
    "show_costs",
    "show_gallery",
    "show_paper",
    "show_schedules",
    "show_tables",
]
