"""`python -m studies.published`: makes what an experiment of the paper's tables needs; resumable."""

import argparse
import sys

from studies.parameters import Refused, take_overrides
from studies.published import EXPERIMENTS, Experiment, fill


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m studies.published",
        description="Make the images and features that an experiment of the paper's tables needs; resumable.",
    )
    parser.add_argument("experiment", help=f"one of {', '.join(EXPERIMENTS)}")
    # Told here for --help; taken out of the words before, since a value may begin with a hyphen.
    parser.add_argument("-p", nargs=2, metavar=("NAME", "VALUE"), help="another value; repeatable")
    try:
        overrides, words = take_overrides(sys.argv[1:] if arguments is None else arguments)
        given = parser.parse_args(words)
        experiment = Experiment.named(given.experiment, "recorded", overrides)
    except Refused as refused:
        parser.error(str(refused))
    fill(experiment)


if __name__ == "__main__":
    main()
