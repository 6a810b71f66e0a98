"""The whole way of a pipeline: its samples, their conditions, an error curve, a grid, and the pipeline on that grid."""

import math

import pytest
import torch

from entropic import edm_sigmas, plan, sample_ddim, sample_dpmpp_2m
from entropic.adapters import to_diffusers
from entropic.estimate import estimate
from entropic.images.pipelines import sample_pipeline
from tests.test_handover import (  # noqa: F401
    STABLE_DIFFUSION,
    _diffusers,
    _pipelines,
    stable_diffusion,
    stable_diffusion_3,
)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array:DeprecationWarning")


def stable_diffusion_xl(diffusers):
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
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 8,
    )
    vae = diffusers.AutoencoderKL(block_out_channels=[4], latent_channels=4, norm_num_groups=2)
    without = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    own = diffusers.EulerDiscreteScheduler(**STABLE_DIFFUSION, steps_offset=1)
    return diffusers.StableDiffusionXLPipeline(
        vae=vae, unet=unet.eval(), scheduler=own, add_watermarker=False, **without
    )


def flux(diffusers):
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    vae = diffusers.AutoencoderKL(block_out_channels=[4], latent_channels=4, norm_num_groups=2)
    without = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    own = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    return diffusers.FluxPipeline(transformer=transformer.eval(), vae=vae, scheduler=own, **without)


def conditions(kind, count):
    """What each pipeline is called with, one mapping a sample; embeddings stand for prompts."""
    generator = torch.Generator().manual_seed(1)

    def embedding(*shape):
        return torch.randn(1, *shape, generator=generator)

    found, no_text, no_pooled = [], embedding(7, 16), embedding(8)
    for _ in range(count):
        one = {"prompt_embeds": embedding(7, 16), "num_inference_steps": 4}
        if kind != "flux":
            one |= {"negative_prompt_embeds": no_text, "guidance_scale": 3.0}
        if kind != "sd":
            one |= {"pooled_prompt_embeds": embedding(8)}
        if kind in ("sdxl", "sd3"):
            one |= {"negative_pooled_prompt_embeds": no_pooled}
        size = {"sd": 8, "sdxl": 8, "sd3": 8, "flux": 16}[kind]
        found.append(one | {"height": size, "width": size})
    return found


MAKE = {
    "sd": lambda diffusers: stable_diffusion(
        diffusers, diffusers.DPMSolverMultistepScheduler(**STABLE_DIFFUSION, steps_offset=1)
    ),
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "flux": flux,
}


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", MAKE)
def test_from_a_pipeline_to_its_own_grid(pipelines, kind, guided):
    if kind == "flux" and guided:
        pytest.skip("FLUX has its guidance within the network")
    pipe = MAKE[kind](pipelines)
    pipe.set_progress_bar_config(disable=True)
    arguments = conditions(kind, 6)
    made = sample_pipeline(pipe, arguments, guided=guided)
    assert len(made.x) == 6 and made.calls == 6 * 4 * (1 if kind == "flux" else 2)

    # the denoiser is the pipeline's: our sampler on the pipeline's own levels ends where the pipeline does
    low, high = (0.03, 14.0) if kind in ("sd", "sdxl") else (0.02, 60.0)
    levels = edm_sigmas(8, low, high)
    pipe.scheduler = to_diffusers(pipe.scheduler, levels)
    noise = torch.randn(made.x[:1].shape, generator=torch.Generator().manual_seed(9))
    call = arguments[2] | {"num_inference_steps": 8, "output_type": "latent"}
    if not guided and kind != "flux":
        call |= {"guidance_scale": 1.0}
    found = pipe(**call, latents=noise * (pipe.scheduler.init_noise_sigma if kind in ("sd3", "flux") else 1))[
        0
    ]
    sampler = sample_dpmpp_2m if kind == "sd" else sample_ddim
    start = noise * float(levels[0])
    if kind == "sd":
        start = noise * float((1 + levels[0] ** 2) ** 0.5)
    one = {name: _third(value) for name, value in made.labels.items()}
    ours = sampler(made.denoiser, start, levels, labels=one)
    assert (found - ours).abs().max() <= 3e-4 * ours.abs().max()

    # untrained weights denoise nothing; of states far apart even they are nearer to x0 than the mean is
    curve = estimate(
        made.denoiser, 4 * made.x, levels[:-1].flip(0), labels=made.labels, samples=6, common_noise=False
    ).curve()
    assert (curve.eps2 > 0).all() and curve.dim == math.prod(made.x.shape[1:])
    chosen = plan(5, curve, "dpmpp_2m" if kind == "sd" else "ddim", sigma_min=low, sigma_max=high)
    pipe.scheduler = to_diffusers(pipe.scheduler, chosen.sigmas)
    assert pipe(**call | {"num_inference_steps": 5})[0].isfinite().all()


def _third(value):
    return {key: _third(one) for key, one in value.items()} if isinstance(value, dict) else value[2:3]


@pytest.mark.parametrize(("kind", "scale"), [("flux", 1.0), ("sd3", 1000.0)])
def test_the_time_that_a_network_hears(pipelines, kind, scale):
    """Whatever the scheduler's class, and in half precision, which has three digits."""
    pipe = MAKE[kind](pipelines)
    pipe.set_progress_bar_config(disable=True)
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "use_dynamic_shifting": True}
    for own in (
        pipelines.UniPCMultistepScheduler(**flow),
        to_diffusers(pipelines.FlowMatchEulerDiscreteScheduler(), edm_sigmas(4, 0.02, 60.0)),
    ):
        pipe.scheduler = own
        made = sample_pipeline(pipe.to(torch.bfloat16), [_half(one) for one in conditions(kind, 1)])
        told = []
        with pipe.transformer.register_forward_pre_hook(
            lambda _, __, named, told=told: told.append(named["timestep"]), with_kwargs=True
        ):
            made.denoiser(made.x, 1.0, made.labels)
        assert told[0].tolist() == pytest.approx([0.5 * scale], rel=1e-6)


def _half(arguments):
    return {key: one.bfloat16() if torch.is_tensor(one) else one for key, one in arguments.items()}


def test_what_does_not_go_together_is_named(pipelines):
    pipe = MAKE["sd"](pipelines)
    pipe.set_progress_bar_config(disable=True)
    arguments = conditions("sd", 2)
    assert len(sample_pipeline(pipe, [one | {"output_type": "pil"} for one in arguments]).x) == 2
    with pytest.raises(ValueError, match="arguments = "):
        sample_pipeline(pipe, [])
    with pytest.raises(ValueError, match="raise guidance_scale"):
        sample_pipeline(pipe, [one | {"guidance_scale": 1.0} for one in arguments], guided=True)
    with pytest.raises(ValueError, match="one size"):
        sample_pipeline(pipe, [arguments[0], arguments[1] | {"height": 16, "width": 16}])
    other = {"negative_prompt_embeds": torch.zeros(1, 7, 16)}
    with pytest.raises(ValueError, match="negative prompts"):
        sample_pipeline(pipe, [arguments[0], arguments[1] | other], guided=True)
    with pytest.raises(ValueError, match="neither `unet` nor `transformer`"):
        sample_pipeline(object(), arguments)
