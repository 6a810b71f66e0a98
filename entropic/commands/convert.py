"""`entropic convert FILE.json --format ...`: a saved schedule as others want it."""

from entropic.adapters import to_comfy, to_flow
from entropic.saved import load_schedule, schedule_text


def run(arguments):
    """Print the schedule of a file in another format. ValueError, OSError: bad input."""
    sigmas, told = load_schedule(arguments.file)
    print(formatted(sigmas, told, arguments.format), flush=True)


def formatted(sigmas, told, style):
    """The text of sigmas (n + 1,) in one of `entropic.commands.FORMATS`, every digit kept; told: the provenance."""
    if style == "json":
        return schedule_text(sigmas, **told).rstrip("\n")
    if style == "python":
        return f"sigmas = {sigmas.tolist()}"
    if style == "comfy":
        return to_comfy(sigmas)
    if style in ("comma", "flow"):
        return ", ".join(map(repr, (to_flow(sigmas) if style == "flow" else sigmas).tolist()))
    return "\n".join(map(repr, sigmas.tolist()))
