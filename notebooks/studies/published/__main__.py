"""`python -m studies.published`: makes what the tables of a page on published networks need; resumable."""

import argparse
import sys
from pathlib import Path

from studies.parameters import Refused, take_overrides
from studies.published import Experiment, fill


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m studies.published",
        description="Make the images and features that the tables of a page on published networks need; resumable.",
    )
    parser.add_argument(
        "page", help="its name or its parameter file: ffhq, notebooks/params/published/ffhq.yml"
    )
    # Told here for --help; taken out of the words before, since a value may begin with a hyphen.
    parser.add_argument("-p", nargs=2, metavar=("NAME", "VALUE"), help="another value; repeatable")
    try:
        overrides, words = take_overrides(sys.argv[1:] if arguments is None else arguments)
        given = parser.parse_args(words)
        experiment = Experiment.of_page(Path(given.page).stem, "recorded", overrides)
    except Refused as refused:
        parser.error(str(refused))
    fill(experiment)


if __name__ == "__main__":
    main()
