"""Samplers: orders, counts, noise; the laws themselves are checked in test_exact.py."""

import math

import pytest
import torch

from entropic import solvers as samplers
from entropic.mixtures import GaussianMixture

DETERMINISTIC = [samplers.sample_ddim, samplers.sample_heun, samplers.sample_dpmpp_2m]
ALL = [*DETERMINISTIC, samplers.sample_ddim_stochastic]
NFE = {"sample_ddim": 6, "sample_heun": 11, "sample_dpmpp_2m": 6, "sample_ddim_stochastic": 6}


def log_grid(n, low=0.01, high=10.0):
    sigmas = torch.logspace(math.log10(high), math.log10(low), n, dtype=torch.float64)
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def start(n=64, dim=2, sigma=10.0, seed=1):
    return sigma * torch.randn(n, dim, generator=seeded(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def mixture():
    return GaussianMixture.isotropic([[-1.0, 0.2], [0.6, -0.4], [1.1, 0.9]], 0.3)


@pytest.mark.parametrize("sample", ALL, ids=lambda f: f.__name__)
def test_calls_are_counted_and_reported(sample, mixture):
    calls, steps = [], []

    def denoiser(x, sigma):
        calls.append(sigma)
        return mixture.denoiser(x, sigma)

    sigmas = log_grid(6)
    x = start()
    sample(denoiser, x, sigmas, generator=seeded(), callback=steps.append)
    assert len(calls) == NFE[sample.__name__] == steps[-1].nfe
    assert [s.index for s in steps] == list(range(6))
    assert [s.sigma for s in steps] == sigmas[:-1].tolist()
    assert [s.sigma_next for s in steps] == sigmas[1:].tolist()
    assert torch.equal(steps[0].x, x)
    torch.testing.assert_close(
        steps[2].denoised, mixture.denoiser(steps[2].x, steps[2].sigma), rtol=0, atol=0
    )


@pytest.mark.parametrize("sample", ALL, ids=lambda f: f.__name__)
def test_one_sigma_returns_the_denoiser(sample, mixture):
    x = start()
    got = sample(mixture.denoiser, x, [10.0, 0.0], generator=seeded())
    torch.testing.assert_close(got, mixture.denoiser(x, 10.0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("sample", ALL, ids=lambda f: f.__name__)
def test_a_constant_denoiser_is_reached_exactly(sample):
    # for a single point a the flow is x = a + sigma z: every solver here is exact on it, and ends at a
    got = sample(lambda x, sigma: torch.full_like(x, 0.7), start(), log_grid(5), generator=seeded())
    torch.testing.assert_close(got, torch.full_like(got, 0.7), rtol=0, atol=1e-13)


@pytest.mark.parametrize("sample", ALL, ids=lambda f: f.__name__)
def test_dtype_is_kept(sample, mixture):
    def denoiser(x, sigma):
        return mixture.denoiser(x.double(), sigma)

    single = sample(denoiser, start().float(), log_grid(6), generator=seeded())
    assert single.dtype == torch.float32
    if sample is not samplers.sample_ddim_stochastic:  # (float32 draws other noise)
        double = sample(mixture.denoiser, start(), log_grid(6))
        # float32 rounding 6e-8 of states up to 40, halved or better at each of six steps: below 1e-4
        torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4)


def test_stochastic_ddim_step_by_step(mixture):
    # each state from the last and the noise that the seed gives: mean and variance of eq. 16, to rounding
    steps, generator = [], seeded(7)
    end = samplers.sample_ddim_stochastic(
        mixture.denoiser, start(), log_grid(6), generator=seeded(7), callback=steps.append
    )
    for step, after in zip(steps, [*(s.x for s in steps[1:]), end], strict=True):
        share = step.sigma_next**2 / step.sigma**2
        want = (1 - share) * mixture.denoiser(step.x, step.sigma) + share * step.x
        if step.sigma_next > 0:
            noise = torch.randn(step.x.shape, generator=generator, dtype=torch.float64)
            variance = step.sigma_next**2 * (step.sigma**2 - step.sigma_next**2) / step.sigma**2
            want = want + variance**0.5 * noise
        torch.testing.assert_close(after, want, rtol=1e-12, atol=1e-12)


def test_seeds_reproduce_and_differ(mixture):
    def run(seed):
        return samplers.sample_ddim_stochastic(mixture.denoiser, start(), log_grid(6), generator=seeded(seed))

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))


def test_one_generator_a_row_makes_samples_independent_of_the_batch(mixture):
    x = start(4)

    def run(rows):
        generators = [seeded(100 + row) for row in rows]
        heun = {"s_churn": 2.0}
        return (
            samplers.sample_ddim_stochastic(mixture.denoiser, x[rows], log_grid(6), generator=generators),
            samplers.sample_heun(mixture.denoiser, x[rows], log_grid(6), generator=generators, **heun),
        )

    for together, alone in zip(run([0, 1, 2, 3]), run([2]), strict=True):
        torch.testing.assert_close(together[2:3], alone, rtol=0, atol=1e-13)


def test_churn_off_is_deterministic_and_churn_outside_the_range_does_nothing(mixture):
    plain = samplers.sample_heun(mixture.denoiser, start(), log_grid(6))
    off = samplers.sample_heun(mixture.denoiser, start(), log_grid(6), s_churn=0.0, generator=seeded())
    outside = samplers.sample_heun(
        mixture.denoiser, start(), log_grid(6), s_churn=5.0, s_min=20.0, generator=seeded()
    )
    on = samplers.sample_heun(mixture.denoiser, start(), log_grid(6), s_churn=5.0, generator=seeded())
    assert torch.equal(plain, off)
    assert torch.equal(plain, outside)
    assert not torch.equal(plain, on)


def test_churn_adds_the_stated_variance():
    # a state of variance sigma^2 has sigma^2 + (sigma_hat^2 - sigma^2) s_noise^2 after churn
    steps = []
    x = start(200_000, 1)
    samplers.sample_heun(
        lambda x, sigma: torch.zeros_like(x),
        x,
        log_grid(6),
        s_churn=1.2,
        s_noise=1.5,
        generator=seeded(),
        callback=steps.append,
    )
    gain = 1.2 / 6
    assert steps[0].sigma == pytest.approx(10 * (1 + gain), rel=1e-14)
    want = 100 + 100 * ((1 + gain) ** 2 - 1) * 1.5**2
    # the standard error of a variance from n normal draws is variance sqrt(2 / n)
    assert abs(steps[0].x.var().item() - want) < 4 * want * math.sqrt(2 / len(x))


@pytest.mark.parametrize("sample", DETERMINISTIC, ids=lambda f: f.__name__)
def test_order_along_the_flow(sample):
    # Gaussian data: the flow is x(sigma) = x(high) sqrt((c^2 + sigma^2) / (c^2 + high^2)). The last sigma is 1e-8,
    # so that the step to 0 is exact to 1e-16. The next order's term tilts the slope by O(1 / n): 0.05 is ample
    # at n = 512..1024, and half of what a neighbouring half order would need to pass.
    c, x = 0.8, torch.ones(1, 1, dtype=torch.float64)
    high, low = 3.0, 1e-8
    want = math.sqrt(c**2 / (c**2 + high**2))
    ns = [128, 256, 512, 1024]
    errors = []
    for n in ns:
        uniform = torch.linspace(1, 0, n, dtype=torch.float64)
        sigmas = torch.cat([low + (high - low) * uniform**2, uniform.new_zeros(1)])
        errors.append(abs(sample(lambda x, s: x * c**2 / (c**2 + s**2), x, sigmas).item() - want))
    slope = -torch.log(torch.tensor(errors)).diff() / torch.log(torch.tensor(ns, dtype=torch.float32)).diff()
    order = 1 if sample is samplers.sample_ddim else 2
    assert abs(slope[-1].item() - order) < 0.05, (errors, slope)


@pytest.mark.parametrize("sample", ALL, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("x", "sigmas", "word"),
    [
        (torch.tensor([[math.nan]]), [1.0, 0.0], "x"),
        (torch.tensor([[1]]), [1.0, 0.0], "x"),
        ([[1.0]], [1.0, 0.0], "x"),
        (torch.ones(1, 1), [1.0, 2.0, 0.0], "sigmas"),
        (torch.ones(1, 1), [2.0, 1.0], "sigmas"),
        (torch.ones(1, 1), [0.0], "sigmas"),
        (torch.ones(1, 1), [math.nan, 0.0], "sigmas"),
    ],
)
def test_bad_input_is_named(sample, x, sigmas, word):
    with pytest.raises(ValueError, match=rf"^{word}\b"):
        sample(lambda x, sigma: x, x, sigmas, generator=seeded())


def test_missing_noise_and_bad_churn_are_named():
    x = torch.ones(2, 1)
    with pytest.raises(ValueError, match="generator"):
        samplers.sample_ddim_stochastic(lambda x, sigma: x, x, [1.0, 0.0])
    with pytest.raises(ValueError, match="generator"):
        samplers.sample_heun(lambda x, sigma: x, x, [1.0, 0.0], s_churn=1.0)
    with pytest.raises(ValueError, match="generator holds 1"):
        samplers.sample_ddim_stochastic(lambda x, sigma: x, x, [1.0, 0.0], generator=[seeded()])
    for name in ("s_churn", "s_min", "s_max", "s_noise"):
        with pytest.raises(ValueError, match=name):
            samplers.sample_heun(lambda x, sigma: x, x, [1.0, 0.0], generator=seeded(), **{name: math.nan})
    with pytest.raises(ValueError, match="denoiser returned"):
        samplers.sample_ddim(lambda x, sigma: x[:1], x, [1.0, 0.0])


# The fourth level. Heun's third step asks about it first, where it ends.
@pytest.mark.parametrize("sample", ALL, ids=lambda f: f.__name__)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_answer_that_is_not_finite_is_named_by_step_and_sigma_at_once(sample, bad):
    sigmas, calls = log_grid(6), []
    level, step = (sigmas[3], 2) if sample is samplers.sample_heun else (sigmas[3], 3)

    def denoiser(x, sigma):
        assert torch.isfinite(x).all()  # it is never asked about a state that its own answer has spoilt
        calls.append(sigma)
        answer = x / (1 + sigma**2)
        answer[5:7, 1] = bad if sigma == level else 0.0
        return answer

    words = f"denoiser returned NaN or infinity at step {step}, sigma = {level}, in 2 of 64 rows"
    with pytest.raises(ValueError, match=words):
        sample(denoiser, start(), sigmas, generator=seeded())
    assert calls[-1] == level


def test_half_precision_that_overflows_is_named_too():
    x = start().half()
    with pytest.raises(ValueError, match=r"NaN or infinity at step 0, sigma = 10\.0, .*torch\.float16"):
        samplers.sample_ddim(lambda x, sigma: x.float() * 1e5, x, [10.0, 1.0, 0.0])
