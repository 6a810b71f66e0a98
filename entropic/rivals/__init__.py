"""Rival schedules, placed from the same denoiser and data: `n` levels above 0, float64, descending, then 0.

They differ in what they need beside n:
- `formulas`: nothing, `function(n, ...)`;
- `tables`: a table of training sigmas, `function(n, table, ...)`;
- `curves`: an error curve, `function(n, curve, ...)`;
- `dmn`: the solver, `function(n, ...)`;
- `tuned`: a spectrum of variances and the solver, `function(n, variances, solver, ...)`;
- `trajectories`: a denoiser and states x (N, ...) at sigma_max, `function(n, denoiser, x, *, ...)`;
- `scores`: a denoiser and data x0 (N, ...), `function(n, denoiser, x0, generator, *, ...)`.

The last two return `Placed(sigmas, calls)`, the others the sigmas alone, because they call nothing. One call is one
evaluation of the denoiser on one sample, so that a batch of N counts N. `batch` bounds the rows that the denoiser sees
at once and changes no result. The frame is s = 1 unless a `process` is named. x of a dtype shorter than float32 counts
as float32, which is what the denoiser then sees. The denoiser may write into its argument and reuse its own memory.

All raise ValueError for n < 2; for a range that is not 0 < sigma_min < sigma_max; for x that is not real, floating,
finite and of two or more dimensions; for a generator that is no torch.Generator; and for a denoiser that returns no
real floating tensor, changes the shape, or returns NaN or infinity.
"""

from entropic.rivals.curves import ays_sigmas, klub
from entropic.rivals.dmn import dmn_objective, dmn_sigmas
from entropic.rivals.formulas import laplace_sigmas
from entropic.rivals.model import Placed
from entropic.rivals.scores import (
    cos_sigmas,
    crs_sigmas,
    marginal_entropy_rate,
    marginal_entropy_sigmas,
)
from entropic.rivals.tables import beta_sigmas, simple_sigmas, vp_table
from entropic.rivals.trajectories import gits_sigmas, oss_sigmas, sharpeuler_sigmas
from entropic.rivals.tuned import tuned_edm_sigmas

__all__ = [
    "Placed",
    "ays_sigmas",
    "beta_sigmas",
    "cos_sigmas",
    "crs_sigmas",
    "dmn_objective",
    "dmn_sigmas",
    "gits_sigmas",
    "klub",
    "laplace_sigmas",
    "marginal_entropy_rate",
    "marginal_entropy_sigmas",
    "oss_sigmas",
    "sharpeuler_sigmas",
    "simple_sigmas",
    "tuned_edm_sigmas",
    "vp_table",
]
