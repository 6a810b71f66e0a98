"""A schedule handed to others' samplers: what takes our sigmas as they are, what needs a turn, and what does not.

Each recipe runs the real library and must end where our own sampler does, to the rounding of its floats. The data are
Gaussian, or the network has random weights. Libraries that are not installed are skipped, and say so.
"""

import copy
import importlib.util
import pickle
import re
import sys
import types

import numpy as np
import pytest
import torch

from entropic.adapters import (
    from_diffusers,
    to_comfy,
    to_diffusers,
    to_flow,
    to_k_diffusion,
    to_skrample,
)
from entropic.images.wheels import mend_torchvision
from entropic.saved import load_schedule, save_schedule
from entropic.schedules import edm_sigmas, log_sigmas
from entropic.solvers import find_solver, sample_ddim, sample_ddim_stochastic, sample_dpmpp_2m, sample_heun

# Of diffusers' own numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

F64 = torch.float64
DEVIATIONS = torch.tensor([2.0, 0.5, 0.05], dtype=F64)
N = 16


def denoiser(x, sigma):
    return x * DEVIATIONS.to(x) ** 2 / (DEVIATIONS.to(x) ** 2 + sigma**2)


def start(sigmas):
    """States (8, 3) at sigmas[0]."""
    noise = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    return DEVIATIONS * noise[0] + sigmas[0] * noise[1]


# k-diffusion


@pytest.fixture(name="k_sampling", scope="module")
def _k_sampling():
    """The module k_diffusion.sampling itself, without the rest of its package, which needs dozens of others."""
    found = importlib.util.find_spec("k_diffusion")
    if found is None:
        pytest.skip(
            "k-diffusion is not installed: pip install --no-deps k-diffusion torchsde torchdiffeq trampoline"
        )
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(found.submodule_search_locations)
    mend_torchvision()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "k_diffusion", package)
        from k_diffusion import sampling

        for name in [name for name in sys.modules if name.startswith("k_diffusion.")]:
            del sys.modules[name]
    return sampling


def float32_network(x, sigma, **_):
    """As networks are: it fails on another dtype, as a matrix product with its weights would."""
    assert x.dtype == torch.float32 and sigma.dtype == torch.float32
    return denoiser(x, sigma[:, None])


@pytest.mark.parametrize(
    ("name", "sampler"),
    [("sample_euler", sample_ddim), ("sample_heun", sample_heun), ("sample_dpmpp_2m", sample_dpmpp_2m)],
)
def test_k_diffusion_ends_where_our_samplers_do(k_sampling, name, sampler):
    for n in (5, N):
        sigmas = edm_sigmas(n, 0.02, 80.0)
        x = start(sigmas)
        single = getattr(k_sampling, name)(float32_network, x.float(), to_k_diffusion(sigmas), disable=True)
        assert single.dtype == torch.float32
        # lambda = -log sigma and the states in float32: some roundings of 2^-24 of numbers below 10
        torch.testing.assert_close(single.double(), sampler(denoiser, x, sigmas), rtol=2e-5, atol=1e-5)
        double = getattr(k_sampling, name)(
            lambda x, sigma: denoiser(x, sigma[:, None]), x, to_k_diffusion(sigmas, F64), disable=True
        )
        torch.testing.assert_close(double, sampler(denoiser, x, sigmas), rtol=1e-11, atol=1e-11)


def test_ancestral_euler_of_k_diffusion_is_stochastic_ddim(k_sampling):
    sigmas = edm_sigmas(6, 0.02, 80.0)
    draw = torch.Generator().manual_seed(2)
    found = k_sampling.sample_euler_ancestral(
        lambda x, sigma: denoiser(x, sigma[:, None]),
        start(sigmas),
        to_k_diffusion(sigmas, F64),
        disable=True,
        noise_sampler=lambda *_: torch.randn(8, 3, generator=draw, dtype=F64),
    )
    ours = sample_ddim_stochastic(denoiser, start(sigmas), sigmas, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(found, ours, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["sample_euler", "sample_heun", "sample_euler_ancestral", "sample_lms"])
def test_float32_networks_get_float32(k_sampling, name):
    """With sigmas of float64 these samplers call a float32 network with float64."""
    sigmas = edm_sigmas(N, 0.02, 80.0)
    sample, x = getattr(k_sampling, name), start(sigmas).float()
    assert sample(float32_network, x, to_k_diffusion(sigmas), disable=True).isfinite().all()
    with pytest.raises(AssertionError):
        sample(float32_network, x, sigmas, disable=True)


def test_levels_that_a_dtype_cannot_tell_apart_are_refused():
    close = torch.tensor([2.0, 1.0 + 1e-4, 1.0, 0.0], dtype=F64)
    assert to_k_diffusion(close).dtype == torch.float32
    with pytest.raises(ValueError, match=r"sigmas\[1:3\] = \[1.0001, 1.0\] are the same in torch.float16"):
        to_k_diffusion(close, torch.float16)
    with pytest.raises(ValueError, match=r"sigmas\[0\] = 1000000.0 is infinite in torch\.float16"):
        to_k_diffusion(torch.tensor([1e6, 1.0, 0.0]), torch.float16)
    with pytest.raises(ValueError, match="append 0"):
        to_k_diffusion(close[:-1])


def test_a_saved_schedule_is_handed_over_as_it_was_made(tmp_path):
    save_schedule(tmp_path / "s.json", log_sigmas(N))
    assert torch.equal(to_k_diffusion(load_schedule(tmp_path / "s.json")[0], F64), log_sigmas(N))


# diffusers: `to_diffusers` against loops as its pipelines have them


@pytest.fixture(name="diffusers", scope="module")
def _diffusers():
    mend_torchvision()
    return pytest.importorskip("diffusers")


STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
VARIANCE_PRESERVING = ("DPMSolverMultistep", "UniPCMultistep", "DEISMultistep")  # whose state is s x


def network_of(scheduler):
    """The Gaussian as a trained network: it takes the scaled state and a time of 0..999, not sigma."""
    alphas = scheduler.alphas_cumprod.double()
    log_sigma = (((1 - alphas) / alphas).log() / 2).numpy()
    kind = scheduler.config.prediction_type

    def network(y, t):
        sigma = float(np.exp(np.interp(float(t), np.arange(len(log_sigma)), log_sigma)))
        x = y * (sigma**2 + 1) ** 0.5
        denoised = denoiser(x, sigma)
        if kind == "sample":
            return denoised
        noise = (x - denoised) / sigma
        return noise if kind == "epsilon" else (noise - sigma * denoised) / (sigma**2 + 1) ** 0.5

    return network


def flow_network(y, t):
    """noise - x0 of a flow matching network, whose state is (1 - tau) x0 + tau noise at t = 1000 tau."""
    tau = float(t) / 1000
    x, sigma = y / (1 - tau), tau / (1 - tau)
    denoised = denoiser(x, sigma)
    return (x - denoised) / sigma - denoised


def walk(scheduler, network, x):
    """The loop of diffusers' pipelines."""
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(scaled, t), t, x).prev_sample
    return x.double()


def handed(diffusers, name, sigmas, **config):
    """The end of a scheduler's walk along `sigmas` from `start(sigmas)`, in our frame."""
    scheduler = to_diffusers(getattr(diffusers, f"{name}Scheduler")(**STABLE_DIFFUSION | config), sigmas)
    scheduler.set_timesteps(len(sigmas) - 1)  # as a pipeline does
    x = start(sigmas)
    if name in VARIANCE_PRESERVING:
        x = x / (1 + sigmas[0] ** 2) ** 0.5
    return walk(scheduler, network_of(scheduler), x)


def inside(n):
    return edm_sigmas(n, 0.03, 14.6)


# sigma in float32 at the network's ear, and lambda in float32 in the solver: some roundings of a state of order 10
CLOSE = {"rtol": 2e-6, "atol": 2e-6}
SAME = {"EulerDiscrete": sample_ddim, "HeunDiscrete": sample_heun, "DPMSolverMultistep": sample_dpmpp_2m}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("name", SAME)
def test_schedulers_end_where_our_samplers_do(diffusers, name, spacing, kind):
    for n in (5, 16):
        found = handed(diffusers, name, inside(n), timestep_spacing=spacing, prediction_type=kind)
        torch.testing.assert_close(found, SAME[name](denoiser, start(inside(n)), inside(n)), **CLOSE)


OPTIONS = {
    "EulerDiscrete": [
        {"use_karras_sigmas": True},
        {"final_sigmas_type": "sigma_min"},
        {"interpolation_type": "log_linear"},
    ],
    "HeunDiscrete": [{"use_karras_sigmas": True}, {"use_exponential_sigmas": True}],
    "DPMSolverMultistep": [
        {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"},
        {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
        {"euler_at_final": True},
        {"use_lu_lambdas": True},
    ],
}


@pytest.mark.parametrize(("name", "options"), [(name, one) for name in OPTIONS for one in OPTIONS[name]])
def test_the_grid_rules_over_a_scheduler_s_options(diffusers, name, options):
    found = handed(diffusers, name, inside(16), **options)
    torch.testing.assert_close(found, SAME[name](denoiser, start(inside(16)), inside(16)), **CLOSE)


@pytest.mark.parametrize("name", ["UniPCMultistep", "DEISMultistep", "LMSDiscrete"])
def test_schedulers_of_other_formulas_converge_on_our_grids(diffusers, name):
    """Their formulas are theirs. On n levels of ours they come as near to the exact end as 2M does, or nearer."""
    for n in (16, 32):
        sigmas = inside(n)
        x = start(sigmas)
        exact = x * DEVIATIONS / (DEVIATIONS**2 + sigmas[0] ** 2).sqrt()
        ends = (
            handed(diffusers, name, sigmas),
            sample_dpmpp_2m(denoiser, x, sigmas),
            sample_ddim(denoiser, x, sigmas),
        )
        found, second, first = (float((end - exact).square().mean().sqrt()) for end in ends)
        assert found < second < 0.3 * first


def test_ancestral_euler_is_stochastic_ddim(diffusers):
    """From the same stream of noise: it draws one in the last step, too, and multiplies it by 0."""
    sigmas, stream = inside(8), torch.Generator().manual_seed(5)
    scheduler = to_diffusers(diffusers.EulerAncestralDiscreteScheduler(**STABLE_DIFFUSION), sigmas)
    network, x = network_of(scheduler), start(sigmas)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(network(scaled, t), t, x, generator=stream).prev_sample
    ours = sample_ddim_stochastic(denoiser, start(sigmas), sigmas, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(x.double(), ours, **CLOSE)


@pytest.mark.parametrize("name", ["EDMEuler", "EDMDPMSolverMultistep"])
def test_schedulers_of_edm(diffusers, name):
    sigmas = edm_sigmas(N, 0.02, 60.0)
    scheduler = to_diffusers(getattr(diffusers, f"{name}Scheduler")(), sigmas)
    assert torch.equal(scheduler.sigmas, sigmas.float())

    def network(scaled, t):
        sigma, data = float((4 * t.double()).exp()), scheduler.config.sigma_data
        x = scaled * (sigma**2 + data**2) ** 0.5
        c_skip, c_out = data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2) ** 0.5
        return (denoiser(x, sigma) - c_skip * x) / c_out

    sampler = sample_ddim if name == "EDMEuler" else sample_dpmpp_2m
    found = walk(scheduler, network, start(sigmas))
    torch.testing.assert_close(found, sampler(denoiser, start(sigmas), sigmas), rtol=1e-5, atol=1e-5)


def test_the_schedulers_that_walk_as_our_samplers_do_are_solver_names(diffusers):
    ours = {"EDMEuler": "ddim", "EDMDPMSolverMultistep": "dpmpp_2m", "FlowMatchEulerDiscrete": "ddim"}
    for name, solver in ours.items():
        scheduler = getattr(diffusers, f"{name}Scheduler")()
        assert find_solver(type(scheduler).__name__).name == solver


FLOWS = {
    "FlowMatchEulerDiscrete": [
        {},
        {"shift": 3.0},
        {"use_dynamic_shifting": True},
        {"shift": 3.0, "shift_terminal": 0.02},
        {"use_karras_sigmas": True},
    ],
    "FlowMatchHeunDiscrete": [{}, {"shift": 3.0}],
    "DPMSolverMultistep": [
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    ],
    "UniPCMultistep": [{"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}],
}


@pytest.mark.parametrize(("name", "options"), [(name, one) for name in FLOWS for one in FLOWS[name]])
def test_flow_schedulers_neither_shift_nor_stretch_the_grid(diffusers, name, options):
    sigmas = edm_sigmas(N, 0.02, 80.0)
    scheduler = to_diffusers(getattr(diffusers, f"{name}Scheduler")(**options), sigmas)
    scheduler.set_timesteps(N, mu=1.15)
    tau = to_flow(sigmas)
    kept = (
        scheduler.sigmas if "Heun" not in name else torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]])
    )
    torch.testing.assert_close(kept.double(), tau, rtol=1e-7, atol=0)
    x = start(sigmas)
    # pure noise z at t[0] is t[0] z: with x = sigma z this is (1 - t[0]) x
    assert scheduler.init_noise_sigma == pytest.approx(float((1 - tau[0]) * sigmas[0]), rel=1e-6)
    found = walk(scheduler, flow_network, (1 - tau[0]) * x)
    if name == "FlowMatchEulerDiscrete":
        torch.testing.assert_close(found, sample_ddim(denoiser, x, sigmas), rtol=1e-5, atol=1e-5)
    elif name == "DPMSolverMultistep":
        torch.testing.assert_close(found, sample_dpmpp_2m(denoiser, x, sigmas), rtol=1e-4, atol=1e-4)
    else:
        exact = x * DEVIATIONS / (DEVIATIONS**2 + sigmas[0] ** 2).sqrt()
        ddim = sample_ddim(denoiser, x, sigmas)
        assert (found - exact).square().mean() < 0.3 * (ddim - exact).square().mean()


def test_a_handed_scheduler_is_a_copy_and_can_be_copied(diffusers):
    own = diffusers.EulerDiscreteScheduler(**STABLE_DIFFUSION)
    own.set_timesteps(7)
    before = own.timesteps.clone()
    given = to_diffusers(own, inside(5))
    again = copy.deepcopy(given)
    for one in (given, again, pickle.loads(pickle.dumps(given))):
        one.set_timesteps(5)
        assert torch.equal(one.sigmas, inside(5).float())
        assert isinstance(one, diffusers.EulerDiscreteScheduler)
    assert torch.equal(own.timesteps, before)
    again.sigmas.zero_()
    given.set_timesteps(5)
    assert torch.equal(given.sigmas, inside(5).float())
    own.set_timesteps(9)
    assert len(own.timesteps) == 9


def test_a_handed_scheduler_walks_twice_alike(diffusers):
    for name in SAME:
        scheduler = to_diffusers(getattr(diffusers, f"{name}Scheduler")(**STABLE_DIFFUSION), inside(8))
        network, ends = network_of(scheduler), []
        for _ in range(2):
            scheduler.set_timesteps(8)
            ends.append(walk(scheduler, network, start(inside(8))))
        assert torch.equal(*ends)


def test_another_number_of_steps_is_refused(diffusers):
    scheduler = to_diffusers(diffusers.EulerDiscreteScheduler(**STABLE_DIFFUSION), inside(5))
    with pytest.raises(ValueError, match=r"num_inference_steps = 50; .* a grid of 5 levels: pass 5"):
        scheduler.set_timesteps(50)
    with pytest.raises(ValueError, match="of 5 levels"):
        scheduler.set_timesteps(sigmas=[3.0, 2.0, 1.0])


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("DDIM", {}, "whole training times; EulerDiscreteScheduler"),
        ("DDPM", {}, "whole training times; EulerAncestral"),
        ("PNDM", {}, "equal training times; DPMSolverMultistepScheduler.from_config"),
        ("DPMSolverSinglestep", {}, "DPMSolverMultistepScheduler takes a grid"),
        ("KDPM2Discrete", {}, "levels of its own"),
        ("LCM", {}, "not known here"),
        (
            "DPMSolverMultistep",
            {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
            r"dpmsolver\+\+",
        ),
        ("UniPCMultistep", {"solver_type": "bh1"}, "bh2"),
        ("UniPCMultistep", {"predict_x0": False}, "predict_x0"),
        ("DPMSolverMultistep", {"prediction_type": "flow_prediction"}, "use_flow_sigmas"),
        ("FlowMatchEulerDiscrete", {"invert_sigmas": True}, "invert_sigmas"),
    ],
)
def test_a_scheduler_that_cannot_take_a_grid_is_refused_with_the_reason(diffusers, name, config, said):
    with pytest.raises(ValueError, match=said):
        to_diffusers(getattr(diffusers, f"{name}Scheduler")(**config), inside(5))


def test_the_scheduler_that_stable_diffusion_comes_with_gives_its_place(diffusers):
    own = diffusers.PNDMScheduler(
        **STABLE_DIFFUSION, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1
    )
    scheduler = to_diffusers(diffusers.DPMSolverMultistepScheduler.from_config(own.config), inside(8))
    x = start(inside(8)) / (1 + inside(8)[0] ** 2) ** 0.5
    found = walk(scheduler, network_of(scheduler), x)
    torch.testing.assert_close(found, sample_dpmpp_2m(denoiser, start(inside(8)), inside(8)), **CLOSE)


def test_networks_of_other_times_are_refused(diffusers):
    """The times of a continuous scheduler are log(sigma) / 4, and noise may be predicted from a state of a flow."""
    continuous = {"timestep_type": "continuous", "prediction_type": "v_prediction"}
    for scheduler, said in (
        (diffusers.EulerDiscreteScheduler(**continuous), "continuous times is not known here"),
        (diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True), "use_flow_sigmas is not known here"),
    ):
        with pytest.raises(ValueError, match=said):
            from_diffusers(torch.nn.Identity(), scheduler)


def test_continuous_times_are_those_of_v_alone(diffusers):
    found = handed(diffusers, "EulerDiscrete", inside(5), timestep_type="continuous")
    torch.testing.assert_close(found, sample_ddim(denoiser, start(inside(5)), inside(5)), **CLOSE)


def test_grids_that_do_not_fit_are_refused(diffusers):
    scheduler = diffusers.EulerDiscreteScheduler(**STABLE_DIFFUSION)
    with pytest.raises(ValueError, match=r"sigma = 80.0 lies outside its training table, 0.0291\d* to 14.61"):
        to_diffusers(scheduler, edm_sigmas(N))
    close = torch.tensor([10.0, 1.0 + 1e-9, 1.0, 0.0], dtype=F64)
    with pytest.raises(ValueError, match=r"are the same in torch\.float32"):
        to_diffusers(scheduler, close)
    with pytest.raises(ValueError, match="does not descend"):
        to_diffusers(scheduler, [*inside(5).flip(0)[1:].tolist(), 0.0])


# diffusers: real pipelines with networks of random weights


@pytest.fixture(name="pipelines", scope="module")
def _pipelines(diffusers):
    pytest.importorskip("transformers")
    return diffusers


def stable_diffusion(diffusers, scheduler):
    """The pipeline of Stable Diffusion, without its text encoder: embeddings are given."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        norm_num_groups=4,
        attention_head_dim=2,
    )
    vae = diffusers.AutoencoderKL(block_out_channels=[4], latent_channels=4, norm_num_groups=2)
    without = dict.fromkeys(
        ("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder")
    )
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae, unet=unet.eval(), scheduler=scheduler, requires_safety_checker=False, **without
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", SAME)
def test_the_pipeline_of_stable_diffusion_with_guidance(pipelines, name):
    own = getattr(pipelines, f"{name}Scheduler")(**STABLE_DIFFUSION, steps_offset=1)
    pipe = stable_diffusion(pipelines, own)
    generator = torch.Generator().manual_seed(1)
    text, without = (torch.randn(2, 7, 16, generator=generator) for _ in range(2))
    noise = torch.randn(2, 4, 8, 8, generator=generator)
    denoise = from_diffusers(pipe.unet, own, guidance=4.0, unconditional={"encoder_hidden_states": without})
    sigmas = edm_sigmas(10, denoise.sigma_min, denoise.sigma_max)
    pipe.scheduler = to_diffusers(own, sigmas)
    found = pipe(
        prompt_embeds=text,
        negative_prompt_embeds=without,
        num_inference_steps=10,
        guidance_scale=4.0,
        latents=noise.clone(),
        output_type="latent",
    ).images
    x = noise * float(pipe.scheduler.init_noise_sigma)
    if name in VARIANCE_PRESERVING:
        x = x * float((1 + sigmas[0] ** 2) ** 0.5)
    ours = SAME[name](denoise, x, sigmas, labels={"encoder_hidden_states": text})
    assert (found - ours).abs().max() <= 1e-5 * ours.abs().max()


def stable_diffusion_3(diffusers):
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        out_channels=4,
        pos_embed_max_size=8,
    )
    vae = diffusers.AutoencoderKL(block_out_channels=[4], latent_channels=4, norm_num_groups=2)
    without = {
        f"{what}{number}": None for what in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")
    }
    own = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer.eval(), vae=vae, scheduler=own, **without
    )


def test_the_pipeline_of_stable_diffusion_3(pipelines):
    pipe = stable_diffusion_3(pipelines)
    own, transformer = pipe.scheduler, pipe.transformer
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    text, pooled = torch.randn(1, 5, 16, generator=generator), torch.randn(1, 8, generator=generator)
    noise = torch.randn(1, 4, 8, 8, generator=generator)
    sigmas = edm_sigmas(6, 0.02, 80.0)
    pipe.scheduler = to_diffusers(own, sigmas)
    found = pipe(
        prompt_embeds=text,
        pooled_prompt_embeds=pooled,
        num_inference_steps=6,
        guidance_scale=1.0,
        latents=pipe.scheduler.init_noise_sigma * noise,
        height=8 * pipe.vae_scale_factor,
        width=8 * pipe.vae_scale_factor,
        output_type="latent",
    ).images
    denoise = from_diffusers(transformer, own)
    labels = {"encoder_hidden_states": text, "pooled_projections": pooled}
    ours = sample_ddim(denoise, noise * float(sigmas[0]), sigmas, labels=labels)
    assert (found - ours).abs().max() <= 1e-4 * ours.abs().max()


# ComfyUI, skrample


def test_comfy_reads_what_is_written():
    """Its node finds the numbers with this pattern, to which 1e-05 is 1 and -05."""
    sigmas = torch.tensor([123456.7, 14.614641, 0.3, 1.25e-5, 0.0], dtype=F64)
    text = to_comfy(sigmas)
    read = [float(one) for one in re.findall(r"[-+]?(?:\d*\.*\d+)", text)]
    assert read == sigmas.tolist() and "e" not in text


def test_skrample_takes_the_points():
    scheduling = pytest.importorskip("skrample.scheduling", reason="skrample needs Python 3.12")
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=F64).square()
    alphas = (1 - betas).cumprod(0)
    found = to_skrample(inside(8), alphas).schedule_np(8)
    ratio = found[:, 1] / found[:, 2]
    np.testing.assert_allclose(ratio, inside(8)[:-1], rtol=1e-12)
    table = ((1 - alphas) / alphas).sqrt().numpy()
    np.testing.assert_allclose(
        np.interp(found[:, 0], np.arange(1000), np.log(table)), np.log(ratio), rtol=1e-9
    )
    np.testing.assert_allclose(found[:, 1] ** 2 + found[:, 2] ** 2, 1, rtol=1e-12)
    flow = to_skrample(inside(8))
    np.testing.assert_allclose(flow.schedule_np(8)[:, 1], to_flow(inside(8))[:-1], rtol=1e-12)
    assert scheduling.schedule_lru(flow, 8) == flow.schedule(8)
