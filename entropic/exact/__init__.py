"""The exact law of a sampler: by quadrature in one dimension, in closed form for Gaussian data.

In one dimension no path is simulated. Stochastic DDIM moves a density: each step is a monotone map followed by
Gaussian noise. A deterministic solver moves points: its output is one function of the initial value, and every
branch of its inverse adds p0(z) / |F'(z)| to the density. All results are in nats and data units, and stay finite
where a density is far below the smallest float, since everything is kept as a logarithm.
"""

from entropic.exact.deterministic import DeterministicLaw, deterministic_law
from entropic.exact.stochastic import StochasticLaw, stochastic_law

__all__ = ["DeterministicLaw", "StochasticLaw", "deterministic_law", "stochastic_law"]
