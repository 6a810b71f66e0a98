"""The command line, `entropic` or `python -m entropic`: which commands there are, and their options.

What computes is imported only when it is to run, so that `--help` does not wait for torch.
"""

import argparse
import importlib
import re
import sys

from entropic._version import version
from entropic.commands import FORMATS, OF_A_SOLVER, SCHEDULES


def main(argv=None):
    """Run the command line; returns 0. Bad input is told in one line on stderr and exits with 2."""
    parser = _parser()
    arguments = parser.parse_args(_joined(sys.argv[1:] if argv is None else argv))
    try:
        importlib.import_module(arguments.module).run(arguments)
    except (ValueError, OSError, ModuleNotFoundError) as error:
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
    for add in (_add_estimate, _add_place, _add_schedule, _add_convert):
        add(commands)
    return parser


def _add_estimate(commands):
    command = commands.add_parser(
        "estimate",
        help="measure the error curve of a network",
        description="Measure the error curve of a network: one call a level and sample. Give one source: --denoiser, "
        "--network, --pipeline or --log.",
    )
    command.set_defaults(module="entropic.commands.estimate")
    add = command.add_argument
    add(
        "--denoiser",
        metavar="MODULE:NAME",
        help="a callable (x, sigma) or (x, sigma, labels) of a module of yours",
    )
    add("--data", metavar="FILE", help="for --denoiser: x (N, ...) in a .npy, or x and labels in a .npz")
    add(
        "--network",
        choices=("fashion-mnist",),
        help="a network of this package, on the images of this package",
    )
    add(
        "--pipeline", metavar="FOLDER", help="a pipeline of diffusers: Stable Diffusion 1.5, XL, 3, FLUX, ..."
    )
    add("--prompts", metavar="FILE", help="for --pipeline: one prompt a line, a sample each")
    add("--steps", type=int, default=30, help="for --pipeline: of each sample (default 30)")
    add("--guidance", type=float, help="for --pipeline: guidance_scale of the samples")
    add("--log", metavar="FILE.jsonl", help="a training log of this package: no network call at all")
    add("--levels", type=int, default=64, help="noise levels of the curve (default 64)")
    add("--samples", type=int, default=64, help="samples a level (default 64)")
    add("--sigma-min", type=float, metavar="S", help="default: the network's own, else 0.002")
    add("--sigma-max", type=float, metavar="S", help="default: the network's own, else 80")
    add("--seed", type=int, default=0)
    add("--batch", type=int, default=32, help="samples at a time (default 32)")
    add("--device", default="cpu", help="cpu, cuda, ... (default cpu)")
    add("--out", metavar="FILE.npz", required=True, help="where the curve is kept, for the other commands")


def _add_place(commands):
    command = commands.add_parser(
        "place",
        help="print the grid of n levels that suits a solver, and a network or an error curve",
        description="Print the grid of n levels that suits a solver. Give one source: --network or --denoiser, on "
        "whose own paths the grid is measured, or --curve, from which one is worked out without a call of the network.",
    )
    command.set_defaults(module="entropic.commands.place")
    add = command.add_argument
    add("-n", type=int, required=True, help="levels above 0")
    add("--network", choices=("fashion-mnist",), help="a network of this package")
    add(
        "--denoiser",
        metavar="MODULE:NAME",
        help="a callable (x, sigma) or (x, sigma, labels) of a module of yours",
    )
    add("--data", metavar="FILE", help="for --denoiser: x (N, ...) in a .npy, or x and labels in a .npz")
    add("--shape", metavar="C,H,W", help="for --denoiser, in place of --data: the shape of a state")
    add("--curve", metavar="FILE.npz", help="an error curve: entropic estimate makes one")
    _add_measured(add)
    _add_goal(add)
    _add_output(add, "the source's")


def _add_measured(add):
    """What belongs to a network alone; absent unless given, so that it can be refused beside a curve."""
    add(
        "--pilots",
        type=int,
        help="of a network: noises that are walked, with labels drawn at random (default 32)",
    )
    add(
        "--calls",
        type=int,
        help="of a network: the most calls, each row one (default 512 a level, at least 8192)",
    )
    add("--seed", type=int, help="of a network: of the pilots (default 0)")
    add("--batch", type=int, help="of a network: pilots at a time (default: all)")
    add("--device", help="of a network: cpu, cuda, ... (default cpu)")
    add(
        "--store",
        metavar="FOLDER",
        help="of a network: keeps what was walked, so that a stopped search goes on",
    )


def _add_convert(commands):
    command = commands.add_parser(
        "convert",
        help="print a saved schedule in another format",
        description="Print a schedule that --out kept, in another format.",
    )
    command.set_defaults(module="entropic.commands.convert")
    command.add_argument("file", metavar="FILE.json")
    _add_format(command.add_argument)


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
    _add_goal(add)
    _add_output(add)


def _add_goal(add):
    add(
        "--solver",
        help="ddim, ddim_stochastic, heun, dpmpp_2m, or what diffusers, k-diffusion, ComfyUI and A1111 call them; of "
        + " and ".join(OF_A_SOLVER),
    )
    add("--metric", help="kl or w2: what the error is counted in")
    add("--alpha", type=float, help="directions weigh variance^alpha, in place of --metric (default 0.75)")
    add(
        "--free-end",
        action="store_true",
        help="choose the last level, too, at sigma_min or above; solver-aware does, unless --sigma-min is given",
    )
    add(
        "--explain",
        action="store_true",
        help="say on stderr which method a solver-aware grid was made by, and why",
    )


def _add_output(add, whose="the curve's"):
    add("--sigma-min", type=float, metavar="S", help=f"default: {whose} lowest level, or 0.002 without one")
    add("--sigma-max", type=float, metavar="S", help=f"default: {whose} highest level, or 80 without one")
    add("--out", metavar="FILE.json", help="also save it, with its provenance, for load_schedule")
    _add_format(add)


def _add_format(add):
    add(
        "--format",
        choices=FORMATS,
        default="text",
        help="of what is printed: one level a line; json with provenance; a Python list; one line with commas; one "
        "line for ComfyUI's ManualSigmas; t = sigma / (1 + sigma) of flow matching, with commas",
    )


if __name__ == "__main__":
    sys.exit(main())
