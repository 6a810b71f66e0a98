"""A schedule handed to others' samplers: what takes our sigmas as they are, what needs a turn, and what does not.

Each loop is written as its users write it and must end where ours does, to the rounding of its floats. The data are
Gaussian, so that every step multiplies a direction by a known factor, and roundings add up to a known bound.
"""

import numpy as np
import pytest
import torch

from entropic.saved import load_schedule, save_schedule
from entropic.schedules import arctan_sigmas, edm_sigmas, log_sigmas
from entropic.solvers import sample_ddim, sample_heun

# Of diffusers' own numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

F64 = torch.float64
DEVIATIONS = torch.tensor([2.0, 0.5, 0.05], dtype=F64)
N = 16
# Inside the training table of the schedulers' usual betas, whose sigmas run from 0.01 to 157.
SCHEDULES = {
    "edm": edm_sigmas(N, 0.02, 80.0),
    "log": log_sigmas(N, 0.02, 80.0),
    "arctan": arctan_sigmas(N, 0.02, 80.0),
}


def denoiser(x, sigma):
    return x * DEVIATIONS**2 / (DEVIATIONS**2 + sigma**2)


def start(sigmas):
    """States (8, 3) at sigmas[0]."""
    noise = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    return DEVIATIONS * noise[0] + sigmas[0] * noise[1]


def assert_ends_as(sampler, found, x, sigmas, rounding, operations=12, steps=None):
    """`found` is the sampler's end from x (or after `steps`), up to `operations` roundings of the state at each step.

    A direction is multiplied by a factor a step: a rounding of its state weighs as much more as the state shrinks.
    """
    states = []
    expected = sampler(denoiser, x, sigmas, callback=lambda step: states.append(step.x))
    *states, expected = [*states, expected][: None if steps is None else steps + 1]
    shrunk = torch.stack(
        [before / after for before, after in zip(states, [*states[1:], expected], strict=True)]
    )
    each = torch.as_tensor(operations, dtype=F64).expand(len(states))
    bound = rounding * expected.abs() * torch.einsum("s,s...->...", each, shrunk.abs())
    excess = (found.double() - expected).abs() / bound
    assert (excess <= 1).all(), excess.max()


HALF_ULP, HALF_ULP32 = 2.0**-53, 2.0**-24


# k-diffusion, and whatever else takes a descending tensor that ends in 0, as ComfyUI's SIGMAS


def sample_euler(model, x, sigmas):
    """The Euler sampler as k-diffusion's users have it."""
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones([x.shape[0]]))
        d = (x - denoised) / sigmas[i]
        x = x + d * (sigmas[i + 1] - sigmas[i])
    return x


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_k_diffusion_loop_takes_the_tensor_as_it_is(tmp_path, name):
    save_schedule(tmp_path / "s.json", SCHEDULES[name])
    sigmas, _ = load_schedule(tmp_path / "s.json")
    x = start(sigmas)
    found = sample_euler(lambda x, sigma: denoiser(x, sigma[:, None]), x, sigmas)
    assert_ends_as(sample_ddim, found, x, sigmas, HALF_ULP)
    # Users' states are float32, and then the float64 sigmas, each of no dimension, leave them so.
    single = sample_euler(lambda x, sigma: denoiser(x, sigma[:, None]).float(), x.float(), sigmas)
    assert single.dtype == torch.float32
    assert_ends_as(sample_ddim, single, x, sigmas, HALF_ULP32)


# diffusers


@pytest.fixture(name="diffusers", scope="module")
def _diffusers():
    """The package, with torchvision masked where it does not load: no scheduler needs it, but the import would fail."""
    package = pytest.importorskip("diffusers")
    from diffusers.utils import import_utils

    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        import_utils._torchvision_available = False
    return package


def table(scheduler):
    """The training sigmas, ascending, in the float32 that the schedulers keep."""
    return (((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5).double()


STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


class Network:
    """A Gaussian's denoiser as a trained network: it takes the scaled state and a time of 0..999, not sigma."""

    def __init__(self, scheduler):
        self.log_sigma = table(scheduler).log().numpy()
        self.kind = scheduler.config.prediction_type
        self.calls = 0

    def __call__(self, x, t):
        self.calls += 1
        sigma = float(np.exp(np.interp(float(t), np.arange(len(self.log_sigma)), self.log_sigma)))
        x = x * (sigma**2 + 1) ** 0.5
        denoised = denoiser(x, sigma)
        return denoised if self.kind == "sample" else (x - denoised) / sigma

    def roundings(self):
        """What a time in float32 adds: 2 dlog(sigma) of a denoised state, dlog(sigma) = dt dlog(sigma)/dt."""
        t = np.arange(1, len(self.log_sigma))
        return 2 * float((t * np.diff(self.log_sigma)).max())


def sample(scheduler, network, x):
    """The loop of diffusers' pipelines."""
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(network(scaled, t), t, x).prev_sample
    return x


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("kind", ["epsilon", "sample"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_euler_discrete_takes_all_values_with_the_terminal_0(diffusers, name, kind, spacing):
    sigmas = SCHEDULES[name]
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type=kind, timestep_spacing=spacing)
    scheduler.set_timesteps(sigmas=sigmas.tolist())
    assert torch.equal(scheduler.sigmas, sigmas.float()) and len(scheduler.timesteps) == N
    network, x = Network(scheduler), start(sigmas)
    found = sample(scheduler, network, x)
    assert network.calls == N
    assert_ends_as(sample_ddim, found, x, sigmas, HALF_ULP32, 12 + network.roundings())


def test_euler_discrete_starts_from_one_of_two_laws(diffusers):
    """Pipelines draw init_noise_sigma N(0, I): sigma_max, or with "leading" that of unit data, noised."""
    sigmas = SCHEDULES["edm"]
    for spacing, expected in (("linspace", 80.0), ("trailing", 80.0), ("leading", (80.0**2 + 1) ** 0.5)):
        scheduler = diffusers.EulerDiscreteScheduler(timestep_spacing=spacing)
        scheduler.set_timesteps(sigmas=sigmas.tolist())
        assert float(scheduler.init_noise_sigma) == pytest.approx(expected, rel=4 * HALF_ULP32)


def test_euler_discrete_lets_our_sigmas_rule_over_its_options(diffusers):
    options = {
        "use_karras_sigmas": True,
        "final_sigmas_type": "sigma_min",
        "interpolation_type": "log_linear",
    }
    scheduler = diffusers.EulerDiscreteScheduler(**options)
    scheduler.set_timesteps(sigmas=SCHEDULES["log"].tolist())
    assert torch.equal(scheduler.sigmas, SCHEDULES["log"].float())


def test_euler_discrete_without_the_terminal_0_leaves_noise(diffusers):
    """It adds no 0 and says nothing: one step is lost, and the end is a state at sigma_min."""
    sigmas = SCHEDULES["log"]
    scheduler = diffusers.EulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=sigmas[:-1].tolist())
    assert len(scheduler.timesteps) == N - 1
    network, x = Network(scheduler), start(sigmas)
    found = sample(scheduler, network, x)
    assert_ends_as(sample_ddim, found, x, sigmas, HALF_ULP32, 12 + network.roundings(), steps=N - 1)


def test_euler_discrete_takes_what_no_sampler_should(diffusers):
    """It checks no order; `save_schedule` and our samplers do."""
    upwards = SCHEDULES["log"].flip(0)
    scheduler = diffusers.EulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=upwards.tolist())
    assert torch.equal(scheduler.sigmas, upwards.float())
    with pytest.raises(ValueError, match="append 0"):
        sample_ddim(denoiser, start(upwards), upwards)


def test_euler_discrete_tells_the_network_no_time_beyond_its_table(diffusers):
    """Sigmas outside the training table are stepped through, but the network hears the table's end, 999 or 0.

    Where the first two lie above it, the scheduler finds its time twice and takes the second: it skips a step and
    fails at the end, unless told where to begin. So choose sigma_min and sigma_max inside the table.
    """
    scheduler = diffusers.EulerDiscreteScheduler(**STABLE_DIFFUSION)
    inside = table(scheduler)[[0, -1]].tolist()
    assert inside == pytest.approx([0.0292, 14.61], rel=2e-3)
    sigmas = edm_sigmas(N)
    scheduler.set_timesteps(sigmas=sigmas.tolist())
    assert torch.equal(scheduler.sigmas, sigmas.float())
    times = scheduler.timesteps
    assert (times[sigmas[:-1] > inside[1]] == 999).all() and (times[sigmas[:-1] < inside[0]] == 0).all()
    assert (times == 999).sum() > 1 and (times == 0).sum() > 1
    x = start(sigmas)
    with pytest.raises(IndexError):
        sample(scheduler, Network(scheduler), x)
    scheduler.set_timesteps(sigmas=sigmas.tolist())
    scheduler.set_begin_index(0)
    found = sample(scheduler, lambda scaled, t: _epsilon(scaled, scheduler), x)
    assert_ends_as(sample_ddim, found, x, sigmas, HALF_ULP32)


def _epsilon(scaled, scheduler):
    """The noise, by a network that is told sigma itself."""
    sigma = float(scheduler.sigmas[scheduler.step_index])
    x = scaled * (sigma**2 + 1) ** 0.5
    return (x - denoiser(x, sigma)) / sigma


@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "DDPMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "EDMDPMSolverMultistepScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
    ],
)
def test_schedulers_that_know_no_sigmas(diffusers, name):
    with pytest.raises(TypeError, match="unexpected keyword argument 'sigmas'"):
        getattr(diffusers, name)().set_timesteps(sigmas=SCHEDULES["edm"].tolist())


def test_uni_pc_takes_sigmas_of_flows_only(diffusers):
    with pytest.raises(ValueError, match="use_flow_sigmas=True"):
        diffusers.UniPCMultistepScheduler().set_timesteps(sigmas=SCHEDULES["edm"].tolist())


def times_of(sigmas, scheduler):
    """The fractional times at which a scheduler that takes `timesteps` finds our sigmas."""
    known = table(scheduler).numpy()
    return np.interp(sigmas[:-1].numpy(), known, np.arange(len(known)))


HEUN = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}


@pytest.mark.parametrize("name", SCHEDULES)
def test_heun_discrete_takes_sigmas_as_fractional_times(diffusers, name):
    """It interpolates its table linearly at `timesteps`, in float: inside the table the inverse hands over any grid."""
    sigmas = SCHEDULES[name]
    scheduler = diffusers.HeunDiscreteScheduler(**HEUN)
    scheduler.set_timesteps(timesteps=times_of(sigmas, scheduler))
    taken = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]])
    assert torch.equal(scheduler.sigmas[1:-1:2], scheduler.sigmas[2::2])
    # A time is rounded to float32, and sigma rises by `slope` a unit of it; then sigma is.
    times, known = times_of(sigmas, scheduler), table(scheduler)
    slope = known.diff()[times.astype(int).clip(max=998)]
    bound = HALF_ULP32 * (1.01 * sigmas[:-1] + slope * torch.from_numpy(times))
    assert taken[-1] == 0 and ((taken.double() - sigmas)[:-1].abs() <= bound).all()
    x = start(sigmas)
    found = sample(scheduler, lambda scaled, t: _epsilon(scaled, scheduler), x)
    assert_ends_as(sample_heun, found, x, taken.double(), HALF_ULP32, 24)


def test_heun_discrete_clamps_what_is_beyond_its_table(diffusers):
    """Its own betas end at sigma 25 and begin at 0.03: the grid's ends are others than asked for, without a word."""
    scheduler = diffusers.HeunDiscreteScheduler()
    sigmas = SCHEDULES["edm"]
    scheduler.set_timesteps(timesteps=times_of(sigmas, scheduler))
    low, high = table(scheduler)[[0, -1]].tolist()
    assert (scheduler.sigmas[0].item(), scheduler.sigmas[-2].item()) == pytest.approx((high, low))
    assert high < 26 and low > 0.02


def test_dpm_solver_multistep_snaps_to_its_table(diffusers):
    """Its `timesteps` become whole: rounded by us, else cut off. Its sigmas are the table's, near ours."""
    sigmas = SCHEDULES["log"]
    scheduler = diffusers.DPMSolverMultistepScheduler()
    known, times = table(scheduler), times_of(sigmas, scheduler)
    for whole in (times, np.rint(times)):
        scheduler.set_timesteps(timesteps=whole)
        index = whole.astype(np.int64)
        assert scheduler.timesteps.dtype == torch.int64 and scheduler.timesteps.tolist() == index.tolist()
        torch.testing.assert_close(scheduler.sigmas[:-1].double(), known[index], rtol=4 * HALF_ULP32, atol=0)
    miss = (scheduler.sigmas[:-1].double() / sigmas[:-1] - 1).abs()
    assert 0.005 < miss.max() < 0.2


def test_dpm_solver_multistep_makes_nan_of_a_level_twice(diffusers):
    """Levels closer than its table's become one, and it divides by the step of length 0: drop the duplicates."""
    scheduler = diffusers.DPMSolverMultistepScheduler(**STABLE_DIFFUSION)
    sigmas = log_sigmas(32, *table(scheduler)[[0, -1]].tolist())
    times = np.rint(times_of(sigmas, scheduler))
    for taken, finite in ((times, False), (np.unique(times)[::-1], True)):
        scheduler.set_timesteps(timesteps=taken.copy())
        assert (np.diff(taken) < 0).all() == finite
        assert sample(scheduler, Network(scheduler), start(sigmas)).isfinite().all() == finite


# diffusers, by another road: flows and EDM


def flow_sigmas(sigmas):
    """Our sigmas in flow matching's time, sigma / (1 + sigma), without the 0 that its schedulers append."""
    return (sigmas / (1 + sigmas))[:-1].tolist()


def velocity(x, t):
    """noise - x0 of a flow matching network, whose state is (1 - tau) x0 + tau noise at t = 1000 tau."""
    tau = float(t) / 1000
    x, sigma = x / (1 - tau), tau / (1 - tau)
    denoised = denoiser(x, sigma)
    return (x - denoised) / sigma - denoised


def sample_flow(scheduler, x):
    for t in scheduler.timesteps:
        x = scheduler.step(velocity(x, t), t, x).prev_sample
    return x


@pytest.mark.parametrize("name", SCHEDULES)
def test_flow_match_euler_takes_flow_sigmas_if_it_does_not_shift(diffusers, name):
    """Deterministic DDIM is the same in any time: Euler in tau ends where Euler in sigma does."""
    sigmas = SCHEDULES[name]
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=flow_sigmas(sigmas))
    assert scheduler.sigmas[-1] == 0 and len(scheduler.timesteps) == N
    x = start(sigmas)
    found = sample_flow(scheduler, x / (1 + sigmas[0]))
    # tau is rounded, twice: in sigma that is dtau / (tau (1 - tau)), relatively.
    assert_ends_as(sample_ddim, found, x, sigmas, HALF_ULP32, 12 + 4 * (1 + sigmas[:-1]))


def test_flow_match_euler_shifts_our_sigmas_again(diffusers):
    tau = torch.tensor(flow_sigmas(SCHEDULES["edm"]), dtype=F64)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=tau.tolist())
    shifted = 3 * tau / (1 + 2 * tau)
    torch.testing.assert_close(scheduler.sigmas[:-1].double(), shifted, rtol=8 * HALF_ULP32, atol=0)
    # So the way round is to undo it beforehand.
    scheduler.set_timesteps(sigmas=(tau / (3 - 2 * tau)).tolist())
    torch.testing.assert_close(scheduler.sigmas[:-1].double(), tau, rtol=16 * HALF_ULP32, atol=0)


def test_uni_pc_takes_flow_sigmas_but_tells_whole_times(diffusers):
    sigmas = SCHEDULES["edm"]
    scheduler = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    scheduler.set_timesteps(sigmas=np.array(flow_sigmas(sigmas)))
    tau = torch.tensor(flow_sigmas(sigmas), dtype=F64)
    assert torch.equal(scheduler.sigmas, torch.cat([tau, torch.zeros(1)]).float())
    assert scheduler.timesteps.tolist() == (1000 * tau).long().tolist()


def test_edm_euler_takes_a_ramp_and_no_sigmas(diffusers):
    """What it calls sigmas is where on its own rho = 7 ramp to step; a ramp can be made for any grid."""
    sigmas = SCHEDULES["log"]
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.02, sigma_max=80.0, rho=7.0)
    scheduler.set_timesteps(sigmas=sigmas)
    assert not (scheduler.sigmas.diff() < 0).all()
    high, low = 80.0 ** (1 / 7), 0.02 ** (1 / 7)
    scheduler.set_timesteps(sigmas=(high - sigmas[:-1] ** (1 / 7)) / (high - low))
    torch.testing.assert_close(scheduler.sigmas.double(), sigmas, rtol=2 * HALF_ULP32, atol=0)

    def network(scaled, t):
        sigma, data = float((4 * t.double()).exp()), scheduler.config.sigma_data
        x = scaled * (sigma**2 + data**2) ** 0.5
        c_skip, c_out = data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2) ** 0.5
        return (denoiser(x, sigma) - c_skip * x) / c_out

    x = start(sigmas)
    # Its time is log(sigma) / 4 in float32: |log(sigma)| < 5 roundings of sigma.
    assert_ends_as(sample_ddim, sample(scheduler, network, x), x, sigmas, HALF_ULP32, 24 + 2 * 5)


def test_edm_euler_with_exponential_sigmas_ignores_the_ramp(diffusers):
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.02, sigma_max=80.0, sigma_schedule="exponential")
    scheduler.set_timesteps(sigmas=SCHEDULES["edm"][:-1])
    torch.testing.assert_close(scheduler.sigmas.double(), SCHEDULES["log"], rtol=1e-6, atol=0)
