"""Measured cells on disk: lines of JSON that several processes may write, and that a stopped process goes on with."""

import contextlib
import json
from pathlib import Path

from entropic.files import only_writer
from studies.leaderboard.names import distance_name

KEY = ("work", "solver", "nfe", "schedule", "run")  # what makes a cell
_TEXT, _WHOLE = ("work", "solver", "schedule", "group", "metric", "commit"), ("nfe", "run")


def key(row):
    """The cell that a row belongs to: work, solver, network calls, schedule, run."""
    return tuple(row[name] for name in KEY)


class Store:
    """A folder of rows, one distance of one cell in a line; each process writes a file of its own.

    share: "i/k" for the i-th of k processes that share the work, i from 0 to k - 1.
    A last line that a kill cut off counts as not written. ValueError: a share that is no share.
    """

    def __init__(self, folder, share="0/1"):
        first, _, count = str(share).partition("/")
        if not (first.isdecimal() and count.isdecimal() and int(first) < int(count)):
            raise ValueError(f"share = {share!r}; pass i/k with i from 0 to k - 1, such as 0/2 and 1/2")
        self.index, self.count = int(first), int(count)
        self.folder, self.file = Path(folder), Path(folder) / f"rows-{self.index}-of-{self.count}.jsonl"

    def rows(self):
        """All rows of all files, in each file the oldest first. ValueError: a damaged line, with file and number."""
        return [row for path in sorted(self.folder.glob("rows-*.jsonl")) for row in _read(path)]

    @contextlib.contextmanager
    def writing(self):
        """Hold this share for the block, which gets a function that adds rows; they are on disk when it returns.

        ValueError: another process holds the same share.
        """
        mark = self.folder / f".share-{self.index}-of-{self.count}"  # holds the lock of this share
        mark.mkdir(parents=True, exist_ok=True)
        with only_writer(mark, f"process with share {self.index}/{self.count}"):
            _drop_torn_end(self.file)
            with self.file.open("a", encoding="utf-8") as file:

                def add(rows):
                    file.write("".join(json.dumps(row) + "\n" for row in rows))
                    file.flush()

                yield add


def _drop_torn_end(path):
    """Remove a last line without its end, so that what is added begins on a line of its own."""
    if path.is_file():
        with path.open("rb+") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)


def _read(path):
    """The rows of a file. Lines that a kill cut off are left out; any other line that is no row is refused."""
    lines = path.read_bytes().split(b"\n")
    lines.pop()  # nothing, or a line whose end was never written
    found = []
    for number, line in enumerate(lines, 1):
        # A line that was cut off in an earlier run got its line end from the next run: it begins and does not end.
        if not line or (line.startswith(b"{") and not line.endswith(b"}")):
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(_damage(path, number, error)) from error
        wrong = _wrong(row)
        if wrong:
            raise ValueError(_damage(path, number, wrong))
        found.append(row | {"metric": distance_name(row["group"], row["metric"])})
    return found


def _wrong(row):
    """What keeps `row` from being one, or None."""
    if not isinstance(row, dict):
        return "it is no JSON object"
    if "value" not in row:
        return "it has no value"
    numbers = () if row["value"] is None else ("value", "calls", "seconds")
    for names, kinds in ((_TEXT, (str,)), (_WHOLE, (int,)), (numbers, (int, float))):
        for name in names:
            if type(row.get(name)) not in kinds:
                return f"{name} = {row.get(name)!r} is no {kinds[-1].__name__}"
    return None


def _damage(path, number, why):
    return f"{path}, line {number} is damaged ({why}); remove this line, and its cell is measured again"
