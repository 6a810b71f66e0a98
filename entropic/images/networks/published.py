"""The published EDM and EDM2 networks and reference statistics: which there are, and how to have them."""

import argparse
import csv
import difflib
from importlib import resources
from typing import NamedTuple

from entropic.files import cache
from entropic.images.downloads import fetch

__all__ = ["Published", "fetch_published", "find", "published"]


class Published(NamedTuple):
    """One published file, by the name of its file without suffix.

    `network` is empty for the reference statistics of a data set, `tuned_for` the metric for which the length of
    the averaging (EMA) was chosen, empty where there was no such choice. `megabytes` (2^20 bytes, rounded up) is
    what its numbers take: 2 bytes a parameter for EDM2, 4 for EDM, 8 an entry for means and covariances; the file
    holds little else. `in_paper`: the paper's tables have values of this network, or of this data set.
    """

    name: str
    dataset: str
    network: str
    tuned_for: str
    url: str
    megabytes: int
    licence: str
    in_paper: bool

    @property
    def path(self):
        """Where `fetch_published` keeps it: $ENTROPIC_CACHE/published/FILE."""
        return cache() / "published" / self.url.rpartition("/")[2]


def published():
    """Every published file that this package can read, a list of `Published`.

    Sources: Karras et al. 2022 (EDM), Karras et al. 2024 (EDM2), with post-hoc EMA; parameters as they publish.
    """
    text = resources.files("entropic.images").joinpath("assets/published.csv").read_text("utf-8")
    return [
        Published(
            **{
                **row,
                "megabytes": int(row["megabytes"]),
                "in_paper": {"yes": True, "no": False}[row["in_paper"]],
            }
        )
        for row in csv.DictReader(text.splitlines())
    ]


def find(name):
    """The file of that name, with or without suffix; ValueError names the nearest ones."""
    known = {one.name: one for one in published()}
    stem = str(name).removesuffix(".pkl").removesuffix(".npz")
    if stem not in known:
        near = difflib.get_close_matches(stem, known, n=4, cutoff=0.5) or known
        raise ValueError(f"name = {name!r} is not published; there are {', '.join(near)}")
    return known[stem]


def fetch_published(name, sha256=None):
    """Path of the published file `name` in $ENTROPIC_CACHE/published, downloaded where it is absent.

    Licence and size are told first; its sha256 is recorded at the first use and checked at every later one, or
    pinned by `sha256` (`entropic.images.downloads.fetch`, which also says what it raises).
    """
    one = find(name)
    note = f"Licence {one.licence}: not for commercial use."
    return fetch(one.url, one.path, sha256=sha256, size=one.megabytes, note=note)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m entropic.images.networks.published",
        description="List or fetch the published EDM and EDM2 networks and reference statistics.",
    )
    parser.add_argument("names", nargs="*", metavar="name", help="what to fetch; without any, all are listed")
    parser.add_argument("--list", action="store_true", help="list them, and fetch nothing")
    parser.add_argument(
        "--pin",
        action="append",
        default=[],
        metavar="name=sha256",
        help="fetch it, and refuse any other content",
    )
    options = parser.parse_args(arguments)
    pins = {}
    for pin in options.pin:
        name, equals, sha256 = pin.partition("=")
        if not equals:
            parser.error(f"--pin {pin}: write name=sha256")
        pins[name] = sha256
    try:
        pins = {find(name): sha256 for name, sha256 in pins.items()}
        wanted = list(dict.fromkeys([*map(find, options.names), *pins]))
        if options.list or not wanted:
            print(_table(wanted or published()))
            return
        for one in wanted:
            print(fetch_published(one.name, pins.get(one)))
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"{parser.prog}: {error}") from error


def _table(rows):
    lines = [("name", "data set", "network", "tuned for", "MB", "in the paper", "here")]
    for one in rows:
        marks = ("yes" if one.in_paper else "", "yes" if one.path.is_file() else "")
        network = one.network or "statistics"
        lines.append((one.name, one.dataset, network, one.tuned_for, str(one.megabytes), *marks))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.rjust(width) if index == 4 else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    licences = ", ".join(sorted({one.licence for one in rows}))
    return "\n".join([*text, "", f"Licence {licences}. Kept in {cache() / 'published'}."])


if __name__ == "__main__":
    main()
