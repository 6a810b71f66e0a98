"""The command line, `entropic` or `python -m entropic`: which commands there are, and their options.

What computes is imported only when it is to run, so that `--help` does not wait for torch.
"""

import argparse
import importlib
import re
import sys

from entropic._version import version
from entropic.commands import OF_A_SOLVER, SCHEDULES


def main(argv=None):
    """Run the command line; returns 0. Bad input is told in one line on stderr and exits with 2."""
    parser = _parser()
    arguments = parser.parse_args(_joined(sys.argv[1:] if argv is None else argv))
    try:
        importlib.import_module(arguments.module).run(arguments)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0


def _joined(words):
    """The words of a command line, with "--alpha -1e3" as "--alpha=-1e3": argparse takes -1e3 for an option."""
    joined = []
    for word in words:
        if joined and re.fullmatch(r"--[a-z-]+", joined[-1]) and re.match(r"-[.0-9]|-(inf|nan)", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def _parser():
    """The parser of all commands; `module` of the parsed arguments is the one that runs them."""
    parser = _Parser(prog="entropic", description="Entropic time schedules for diffusion models.")
    parser.add_argument("--version", action="version", version=f"entropic {version}")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_schedule(commands)
    return parser


def _add_schedule(commands):
    command = commands.add_parser(
        "schedule",
        help="print n noise levels, descending, and the 0 they end in",
        description="Print n noise levels, descending from sigma_max to sigma_min, and the 0 they end in.",
    )
    command.set_defaults(module="entropic.commands.schedule")
    add = command.add_argument
    add("name", choices=SCHEDULES, metavar="NAME", help=", ".join(SCHEDULES))
    add("-n", type=int, required=True, help="levels above 0")
    add("--curve", metavar="FILE.npz", help="an error curve, as entropic.saved.save_curve wrote it")
    add(
        "--variances",
        metavar="FILE",
        help="variances of the data, one a direction: .npy, or text, one a line",
    )
    add("--preset", type=float, metavar="C", help="data N(0, C^2 I), in place of a curve or variances")
    add("--solver", help="ddim, ddim_stochastic, heun or dpmpp_2m; of " + " and ".join(OF_A_SOLVER))
    add("--metric", help="kl or w2: what the error is counted in")
    add("--alpha", type=float, help="directions weigh variance^alpha, in place of --metric (default 0.75)")
    add(
        "--free-end",
        action="store_true",
        help="choose the last level, too, at sigma_min or above: for few steps",
    )
    add(
        "--explain",
        action="store_true",
        help="say on stderr which method a solver-aware grid was made by, and why",
    )
    add("--sigma-min", type=float, default=0.002, metavar="S", help="default 0.002")
    add("--sigma-max", type=float, default=80.0, metavar="S", help="default 80")
    add("--out", metavar="FILE.json", help="also save it, with its provenance, for load_schedule")
    add("--format", choices=("text", "json", "python"), default="text", help="of what is printed")


if __name__ == "__main__":
    sys.exit(main())
