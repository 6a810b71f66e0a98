"""The paper's tables on published networks: error curve, schedules, images, features, distances; all resumable.

    torchrun --nproc-per-node N -m studies.published imagenet512 [-p parameter value]

makes what the tables of that page need, with its parameters; the page's notebook then reads it and shows it.
"""

from studies.published.experiment import Experiment
from studies.published.filling import error_curve, fill, gallery, rows, schedules
from studies.published.page import beside_paper, results, show_gallery, show_schedules, show_tables, verdict

__all__ = [
    "Experiment",
    "beside_paper",
    "error_curve",
    "fill",
    "gallery",
    "results",
    "rows",
    "schedules",
    "show_gallery",
    "show_schedules",
    "show_tables",
    "verdict",
]
