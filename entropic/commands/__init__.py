"""The commands of `entropic`, a module each with `run(arguments)`, and the names that they share with the parser."""

CLOSED_FORMS = ("edm", "log", "linear", "cosine", "vp")
OF_A_CURVE = ("entropic", "rescaled", "spectral", "solver-aware")
OF_DATA = (*OF_A_CURVE, "gaussian-optimal", "arctan")
OF_A_SOLVER = ("solver-aware", "gaussian-optimal")
SCHEDULES = (*CLOSED_FORMS, "arctan", *OF_A_CURVE, "gaussian-optimal")
FORMATS = ("text", "json", "python", "comma", "comfy", "flow")
SOURCES = ("denoiser", "network", "pipeline", "log")
