"""`python -m studies.published`: makes what the tables of a notebook on published networks need; resumable."""

import argparse

from studies.published import Experiment, fill


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m studies.published",
        description="Make the images and features that a notebook's tables of published networks need; resumable.",
    )
    parser.add_argument("notebook", help="notebooks/imagenet512.ipynb, say: its parameters are taken")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="another value"
    )
    given = parser.parse_args(arguments)
    fill(Experiment.of_notebook(given.notebook, given.p))


if __name__ == "__main__":
    main()
