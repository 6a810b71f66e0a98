"""Forward processes in their own time t: the scale s(t), the noise level sigma(t), and changes of time."""

from __future__ import annotations

import math

import torch

from entropic._check import as_float64, check_finite, inside, integer, positive, sigma_range
from entropic.types import Map, Numbers


class Process:
    """A forward SDE dX = (s'/s) X dt + s sqrt(2 sigma' sigma) dW with p(x_t | x_0) = N(s x_0, s^2 sigma^2 I).

    `s`, `sigma` and `t_of_sigma` map float64 tensors to tensors of the same shape, entry by entry. They are written in
    torch operations, so that forward-mode differentiation gives their exact derivatives. Times t lie in
    [t_min, t_max], and sigma increases with t. At an end where sigma is 0 or infinite, sigma has its limit, while
    drift and diffusion may have none. At the times `knots` the functions have one derivative from the left and
    another from the right; the latter is used, and a quadrature should be split there.
    Methods take numbers, arrays or tensors. ValueError: a time outside [t_min, t_max], a noise level outside its
    range, a value that is not finite. Source: section 2, in the notation of Karras et al. (2022), eq. 4.
    """

    def __init__(
        self,
        name: str,
        s: Map,
        sigma: Map,
        t_of_sigma: Map,
        t_min: float,
        t_max: float,
        knots: Numbers | None = None,
    ) -> None:
        self.name, self.t_min, self.t_max = name, float(t_min), float(t_max)
        if not self.t_min < self.t_max:
            raise ValueError(f"t_min = {t_min} is not below t_max = {t_max}; pass an interval of time")
        self._s, self._sigma, self._t = s, sigma, t_of_sigma
        self.knots = as_float64("knots", [] if knots is None else knots).clone()

    def __repr__(self):
        return f"Process({self.name!r}, t in [{self.t_min:g}, {self.t_max:g}])"

    def s(self, t: Numbers) -> torch.Tensor:
        """Scale of the signal, shaped like t."""
        return self._s(self._inside(t))

    def sigma(self, t: Numbers) -> torch.Tensor:
        """Noise level in data units (the standard deviation of x_t / s given x_0), shaped like t."""
        return self._sigma(self._inside(t))

    def t(self, sigma: Numbers) -> torch.Tensor:
        """The time at which the noise level is sigma: the inverse of `sigma`."""
        sigma = as_float64("sigma", sigma)
        ends = self._sigma(torch.tensor([self.t_min, self.t_max], dtype=torch.float64))
        low, high = ends.tolist()
        said = f"; {self.name} has noise from {low:g} to {high:g}"
        return self._t(inside("sigma", sigma, low, high, said, 1e-12)).clamp(self.t_min, self.t_max)

    def sigma_rate(self, t: Numbers) -> torch.Tensor:
        """The derivative sigma'(t)."""
        return self._finite("sigma_rate", t, _derivative(self._sigma, self._inside(t)))

    def drift(self, t: Numbers) -> torch.Tensor:
        """The factor s'/s of x in the drift; the drift itself is drift(t) * x."""
        t = self._inside(t)
        return self._finite("drift", t, _derivative(self._s, t) / self._s(t))

    def diffusion(self, t: Numbers) -> torch.Tensor:
        """The coefficient g = s sqrt(2 sigma' sigma) of dW."""
        t = self._inside(t)
        product = 2 * _derivative(self._sigma, t) * self._sigma(t)
        return self._finite("diffusion", t, self._s(t) * product.sqrt())

    def coefficients_in_time(self, t: Numbers, rate: Numbers) -> tuple[torch.Tensor, torch.Tensor]:
        """(s'/s / rate, g / sqrt(rate)): drift factor and diffusion at t in another time tau, dtau/dt = rate > 0.

        Where `rate` is that of the conditional entropy, Theorem 5.2 says that these two are the same for all processes
        that differ by a change of time. Source: Definition 4.1.
        """
        rate = as_float64("rate", rate)
        if not (rate > 0).all():
            raise ValueError(f"rate = {rate.min().item()}; a proper change of time has a rate above 0")
        return self.drift(t) / rate, self.diffusion(t) / rate.sqrt()

    def _inside(self, t):
        said = f"; {self.name} runs over [{self.t_min:g}, {self.t_max:g}]"
        return inside("t", as_float64("t", t), self.t_min, self.t_max, said)

    def _finite(self, what, t, value):
        if not torch.isfinite(value).all():
            raise ValueError(
                f"t = {t}: the {what} of {self.name} is not finite there; stay inside the interval"
            )
        return value


def _derivative(function, t):
    return torch.func.jvp(function, (t,), (torch.ones_like(t),))[1]


def _ones(t):
    return torch.ones_like(t)


def _preserving(sigma):
    """s = 1 / sqrt(1 + sigma^2): the variance-preserving scale."""
    return lambda t: (1 + sigma(t).square()).rsqrt()


def edm() -> Process:
    """s = 1, sigma = t: time is the noise level (Karras et al. 2022)."""
    return Process("EDM", _ones, lambda t: t, lambda sigma: sigma, 0.0, math.inf)


def ve_sqrt() -> Process:
    """s = 1, sigma = sqrt(t): plain Brownian motion, the VE column of Karras et al. (2022), table 1."""
    return Process("VE sqrt", _ones, torch.sqrt, torch.square, 0.0, math.inf)


def ve_geometric(sigma_min: float = 0.002, sigma_max: float = 80.0) -> Process:
    """s = 1, sigma = sigma_min (sigma_max / sigma_min)^t for t in [0, 1] (Song et al. 2021, VE SDE)."""
    low, high = sigma_range(sigma_min, sigma_max)
    span = math.log(high / low)
    return Process(
        "VE geometric",
        _ones,
        lambda t: low * (span * t).exp(),
        lambda sigma: (sigma / low).log() / span,
        0.0,
        1.0,
    )


def vp_linear(beta_d: float = 19.9, beta_min: float = 0.1) -> Process:
    """s = 1 / sqrt(1 + sigma^2), sigma^2 = exp(beta_d t^2 / 2 + beta_min t) - 1 for t in [0, 1].

    The VP SDE of Song et al. (2021) with beta(t) = beta_min + beta_d t, and the linear schedule of DDPM.
    """
    beta_d, beta_min = positive("beta_d", beta_d), positive("beta_min", beta_min)

    def sigma(t):
        return torch.expm1(t * (beta_d * t / 2 + beta_min)).sqrt()

    def t_of_sigma(sigma):
        log_variance = torch.log1p(sigma.square())
        # The root of the quadratic equation, in the form without a difference of nearly equal numbers.
        return 2 * log_variance / (beta_min + (beta_min**2 + 2 * beta_d * log_variance).sqrt())

    return Process("VP linear", _preserving(sigma), sigma, t_of_sigma, 0.0, 1.0)


def vp_constant(t_max: float = 10.0) -> Process:
    """s = exp(-t / 2), sigma^2 = exp(t) - 1 for t in [0, t_max]: the VP SDE with beta = 1 (Ornstein and Uhlenbeck).

    The linear one of Song et al. (2021) with beta_d = 0, in units of time in which beta_min = 1.
    """
    t_max = positive("t_max", t_max)
    return Process(
        "VP constant",
        lambda t: (-t / 2).exp(),
        lambda t: torch.expm1(t).sqrt(),
        lambda sigma: torch.log1p(sigma.square()),
        0.0,
        t_max,
    )


def vp_cosine(offset: float = 0.008) -> Process:
    """s = cos a(t) / cos a(0), a(t) = (pi/2) (t + offset) / (1 + offset), sigma^2 = 1/s^2 - 1, t in [0, 1].

    Source: Nichol and Dhariwal (2021), eq. 17, without their clipping. With offset = 0 it is
    sigma = tan(pi t / 2): the rescaled entropic time of N(0, I) data (appendix E).
    """
    offset = float(as_float64("offset", offset))
    if offset < 0:
        raise ValueError(f"offset = {offset}; it is at least 0, 0.008 in the source")
    scale = math.pi / 2 / (1 + offset)
    start = offset * scale

    # cos a = sin((1 - t) scale), and cos^2 a(0) - cos^2 a = sin(a - a(0)) sin(a + a(0)): exact at both ends.
    def sigma(t):
        return (torch.sin(t * scale) * torch.sin(t * scale + 2 * start)).sqrt() / torch.sin((1 - t) * scale)

    def s(t):
        return torch.sin((1 - t) * scale) / math.cos(start)

    def t_of_sigma(sigma):
        square = sigma.square()
        angle = torch.atan2((square + math.sin(start) ** 2).sqrt(), torch.full_like(sigma, math.cos(start)))
        # a - a(0) by its sine where a is close to a(0), by atan2 with its cosine where it is not.
        sine = square / (1 + square) * math.cos(start) ** 2 / torch.sin(angle + start).clamp_min(1e-300)
        return torch.atan2(sine, torch.cos(angle - start)) / scale

    return Process("VP cosine", s, sigma, t_of_sigma, 0.0, 1.0)


def iddpm(M: int = 1000) -> Process:
    """The table of iDDPM as Karras et al. (2022) describe it: t = k / M has sigma = u_{M-k}, k = 1..M.

    u_M = 0, u_{j-1}^2 + 1 = (u_j^2 + 1) / max(abar_{j-1} / abar_j, 0.001), with
    abar_j = sin^2(pi/2 j / (1.008 M)).
    Between two entries log sigma is linear in t, and the entries are the `knots`. Entry k = 0 has sigma = 0, so that
    t starts at 1 / M. s = 1 / sqrt(1 + sigma^2). Source: Karras et al. (2022), table 1 and appendix C.3.
    """
    M = integer("M", M, 3)
    alpha_bar = torch.sin(math.pi / 2 * torch.arange(M + 1, dtype=torch.float64) / (M * 1.008)).square()
    ratio = (alpha_bar[:-1] / alpha_bar[1:]).clamp_min(0.001)
    # u_j^2 + 1 is a product of ratios from the top; the sum of their logarithms keeps small u exact.
    log_growth = -ratio.log().flip(0).cumsum(0)
    log_u = torch.expm1(log_growth).log() / 2
    step = log_u.diff()

    def sigma(t):
        index = (t.detach() * M - 1).floor().long().clamp(0, M - 2)
        return (log_u[index] + (t * M - 1 - index) * step[index]).exp()

    def t_of_sigma(sigma):
        log_sigma = sigma.log()
        index = (torch.searchsorted(log_u, log_sigma.contiguous(), right=True) - 1).clamp(0, M - 2)
        return (1 + index + (log_sigma - log_u[index]) / step[index]) / M

    knots = torch.arange(2, M, dtype=torch.float64) / M
    return Process("iDDPM", _preserving(sigma), sigma, t_of_sigma, 1 / M, 1.0, knots)


def flow_matching() -> Process:
    """s = 1 - t, sigma = t / (1 - t), t in [0, 1]: x_t = (1 - t) x_0 + t z (Lipman et al. 2023; t = 0 are the data)."""
    return Process(
        "flow matching", lambda t: 1 - t, lambda t: t / (1 - t), lambda sigma: 1 / (1 + 1 / sigma), 0.0, 1.0
    )


def change_of_time(process: Process, phi: Map, phi_inverse: Map) -> Process:
    """The same SDE in the time tau = phi(t): s(phi_inverse(tau)) and sigma(phi_inverse(tau)).

    `phi` and `phi_inverse` increase and are inverse to each other. They act entry by entry on float64 tensors, in torch
    operations, as phi_inverse is differentiated. The kernels agree: p_t(x | x_0) = q_phi(t)(x | x_0).
    ValueError: one of the two properties does not hold at one of 64 times. Source: Definitions 4.1 and 4.2.
    """
    ends = torch.tensor([process.t_min, process.t_max], dtype=torch.float64)
    probe = torch.linspace(0.0, 1.0, 65, dtype=torch.float64)[:-1]
    if math.isinf(process.t_max):
        probe = process.t_min + probe / (1 - probe)
    else:
        probe = process.t_min + probe * (process.t_max - process.t_min)
    tau = check_finite("phi(t)", phi(probe))
    if not (tau.diff() > 0).all():
        at = probe[int((tau.diff() <= 0).nonzero()[0])].item()
        raise ValueError(f"phi does not increase after t = {at}; a proper change of time does")
    back = phi_inverse(tau)
    if not torch.allclose(back, probe, rtol=1e-6, atol=1e-9):
        worst = (back - probe).abs().argmax()
        raise ValueError(
            f"phi_inverse(phi({probe[worst].item()})) = {back[worst].item()}; pass the inverse of phi"
        )
    low, high = phi(ends).tolist()
    return Process(
        f"{process.name}, another time",
        lambda tau: process._s(phi_inverse(tau)),
        lambda tau: process._sigma(phi_inverse(tau)),
        lambda sigma: phi(process._t(sigma)),
        low,
        high,
        phi(process.knots),
    )
