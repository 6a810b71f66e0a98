"""`entropic place -n 10 ... --solver heun`: the grid that suits a solver, and a network or an error curve."""

import torch

from entropic import _check, placement
from entropic.adapters import rows_of
from entropic.commands import schedule, sources
from entropic.commands.convert import formatted
from entropic.gaussian import goal_of
from entropic.paths import range_of
from entropic.saved import save_schedule

_OF_A_NETWORK = ("data", "shape", "pilots", "calls", "seed", "batch", "device", "store")
_PILOTS = 32


def run(arguments):
    """Print the sigmas, and save them where --out says so. ValueError, OSError: bad input."""
    given = [name for name in ("network", "denoiser", "curve") if getattr(arguments, name) is not None]
    if len(given) != 1:
        raise ValueError(f"pass one of --network, --denoiser and --curve, not {len(given)}")
    if arguments.curve is not None:
        for name in _OF_A_NETWORK:
            if getattr(arguments, name) is not None:
                raise ValueError(
                    f"--{name} belongs to a network or denoiser; --curve is worked out without one"
                )
        arguments.name, arguments.variances, arguments.preset = "solver-aware", None, None
        return schedule.run(arguments)
    found, told = _measured(arguments)
    if arguments.explain:
        sources.say(found.explain())
    if arguments.out:
        save_schedule(arguments.out, found.sigmas, **told)
    print(formatted(found.sigmas, told, arguments.format), flush=True)


def _measured(arguments):
    """(`Plan`, provenance) of the network's own paths."""
    for name in ("data", "shape"):
        if getattr(arguments, name) is not None and arguments.denoiser is None:
            raise ValueError(f"--{name} belongs to --denoiser, which is not given")
    if arguments.denoiser is not None and (arguments.data is None) == (arguments.shape is None):
        raise ValueError("--denoiser needs either --data FILE, states as it expects them, or --shape C,H,W")
    if arguments.solver is None:
        raise ValueError("place needs --solver: the grid is made for one")
    if arguments.metric is not None and arguments.alpha is not None:
        raise ValueError(
            f"--metric and --alpha are both given; alpha = {arguments.alpha} replaces the metric"
        )
    schedule.check_n(arguments.n)
    pilots = _check.integer("pilots", _PILOTS if arguments.pilots is None else arguments.pilots, 1)
    seed = _check.integer("seed", arguments.seed or 0, 0)
    arguments.device = arguments.device or "cpu"
    sources.check_device(arguments.device)
    source = (sources.shipped if arguments.denoiser is None else sources.users)(arguments)
    _, high = range_of(source.denoiser, arguments.sigma_min, arguments.sigma_max)
    x, labels = _pilots(source, arguments.shape, pilots, high, seed)
    goal = None
    if arguments.metric is not None or arguments.alpha is not None:
        goal = goal_of(arguments.metric or "w2", arguments.alpha)
    sources.say(f"{pilots} pilots from sigma = {high:g}; --calls limits the calls of the network")
    found = placement.plan(
        arguments.n,
        source.denoiser,
        arguments.solver,
        goal,
        arguments.sigma_min,
        arguments.sigma_max,
        free_end=True if arguments.free_end else None,
        x=x.to(arguments.device),
        labels=labels.to(arguments.device) if torch.is_tensor(labels) else labels,
        calls=arguments.calls,
        batch=arguments.batch,
        store=arguments.store,
    )
    told = {
        "schedule": found.method,
        "solver": found.solver,
        **source.about,
        "seed": seed,
        "calls": found.calls,
    }
    told |= {"pilots": len(next(iter(found.errors.values()), x))}  # as many as the calls allowed
    if found.errors:
        told["mean_errors"] = {name: found.errors[name].mean().item() for name in ("EDM", "measured")}
    else:
        told["goal"] = str(found.goal)
    return found, told


def _pilots(source, shape, count, high, seed):
    """(noises (count, ...) at sigma_max, labels of rows drawn at random)."""
    generator = torch.Generator().manual_seed(seed)
    if source.x is None:
        words = shape.replace("x", ",").split(",")
        if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
            raise ValueError(f"shape = {shape!r}; pass whole numbers above 0 with commas, such as 3,32,32")
        shape, kind = tuple(map(int, words)), torch.float32
    else:
        shape = tuple(source.x.shape[1:])
        kind = source.x.dtype if source.x.dtype == torch.float64 else torch.float32
    x = high * torch.randn(count, *shape, generator=generator, dtype=kind)
    if source.labels is None:
        return x, None
    return x, rows_of(source.labels, torch.randint(len(source.labels), (count,), generator=generator))
