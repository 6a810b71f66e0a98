"""What a search shows while it runs: nothing, unless it takes longer than a second and somebody looks at a terminal."""

from tqdm import tqdm

__all__ = ["progress_bar"]

_DELAY = 1.0  # seconds


def progress_bar(what, unit, total=None):
    """A tqdm bar on stderr, which also says how long the work took; only on a terminal, and only after a second.

    what: what is done, such as "search of 10 levels". unit: what `update` counts. total: how many there are, if known.
    """
    return tqdm(total=total, desc=what, unit=f" {unit}", delay=_DELAY, disable=None, mininterval=0.2)
