"""What tables and the record call solvers and distances."""

from entropic.solvers import DDIM, DPMPP_2M, HEUN, STOCHASTIC_DDIM

# The names in the record must stay as they are: measured cells are found by them.
SOLVERS = {
    "deterministic DDIM": DDIM,
    "stochastic DDIM": STOCHASTIC_DDIM,
    "Heun": HEUN,
    "DPM-Solver++(2M)": DPMPP_2M,
}
SHORT = dict(zip(SOLVERS, ("det. DDIM", "stoch. DDIM", "Heun", "2M"), strict=True))  # for narrow columns

KL_OF_DATA = "KL(data || generated)"
KL_OF_GENERATED = "KL(generated || data)"
W2_OF_COMPONENTS = "W2, first components"  # squared, in the principal components of the largest variance
# How far the solver ends from the end of the converged path of the same noise: the mean over noises of the Euclidean
# distance, and the root of the mean of its square.
PATH, PATH_RMS = "path error", "path error, rms"


def distance_name(group, metric):
    """The full name of a distance that a row of `group` has: old rows say "KL" and leave its direction out.

    Gaussian works were measured by KL(generated || data), mixtures in one dimension by KL(data || generated).
    """
    if metric != "KL":
        return metric
    return KL_OF_GENERATED if group.startswith("Gaussian") else KL_OF_DATA
