"""EDM's and EDM2's networks: reference arrays tensor by tensor, sizes, identities of magnitude, protocol, bad input."""

import json
import math
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from entropic.images.networks import edm, edm2
from entropic.noise import vp_linear
from entropic.schedules import edm_sigmas
from entropic.solvers import sample_ddim, sample_heun

# Float32 through some fifty layers of magnitude 1 to 5, in another order of sums: 50 * 5 * 2^-24 = 1.5e-5.
ROUNDING = 2e-5
FLOAT64 = {"dtype": torch.float64}
TINY2 = {"img_resolution": 16, "img_channels": 4, "label_dim": 10, "model_channels": 32}
TINY = {
    "img_resolution": 16,
    "img_channels": 3,
    "model_channels": 32,
    "channel_mult": [2, 2],
    "num_blocks": 2,
}
CIFAR10 = {"img_resolution": 32, "img_channels": 3, "channel_mult": [2, 2, 2], "augment_dim": 9}
FFHQ = {"img_resolution": 64, "img_channels": 3, "channel_mult": [1, 2, 2, 2], "augment_dim": 9}
BUILDERS = [
    lambda: edm2.Precond(**TINY2),
    lambda: edm.EDMPrecond(**TINY, label_dim=10, augment_dim=9),
    lambda: edm.VPPrecond(**TINY, label_dim=10),
]
ALL = pytest.mark.parametrize("build", BUILDERS, ids=["edm2", "edm", "vp"])


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


def _arrays(name):
    if "ENTROPIC_ORACLE" not in os.environ:
        pytest.skip("no reference arrays")
    with np.load(Path(os.environ["ENTROPIC_ORACLE"]) / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file}


def _reference(kind, name, dtype):
    state = _arrays(f"{name}-state")
    meta = json.loads((Path(os.environ["ENTROPIC_ORACLE"]) / f"{name}-meta.json").read_text("utf-8"))
    network = kind(**meta["init_kwargs"]).to(dtype).eval()
    network.load_state_dict(state, strict=True)
    return network


@pytest.fixture(name="published")
def _published():
    return _reference(edm2.Precond, "tiny", torch.float16)


@pytest.fixture(name="song")
def _song():
    return _reference(edm.EDMPrecond, "edm-tiny-uncond", torch.float32)


def _random(network, seed=0):
    """Every parameter drawn, gains included, so that no branch is silent."""
    generator = torch.Generator().manual_seed(seed)
    for value in network.parameters():
        value.copy_(
            torch.randn(value.shape, generator=generator) / (value[0].numel() if value.ndim else 1) ** 0.5
        )
    return network.eval()


def _inputs(network, rows=4, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    sigma = torch.logspace(-2, 1.5, rows)
    x = sigma[:, None, None, None] * torch.randn((rows, *network.shape), generator=generator)
    label = torch.randint(network.num_classes, (rows,), generator=generator) if network.num_classes else None
    return x.to(dtype), sigma, label


def _close(found, wanted, tolerance):
    assert found.shape == wanted.shape
    torch.testing.assert_close(found.double(), wanted.double(), rtol=0, atol=tolerance)


# Reference arrays


@pytest.mark.parametrize("upcast", [False, True], ids=["as_published", "upcast_fp32"])
def test_edm2_agrees_with_the_reference(published, upcast):
    wanted = _arrays("tiny-forward")
    network = published.float() if upcast else published
    tag = "upcast_fp32" if upcast else "as_published"
    x, sigma, label = (wanted[key] for key in ("x", "sigma", "class_idx"))
    _close(network(x, sigma, label), wanted[f"D_{tag}"], ROUNDING)
    _close(network.logvar(sigma), wanted[f"logvar_{tag}"].flatten(), ROUNDING)
    if not upcast:
        _close(network(x, sigma), wanted["D_no_labels"], ROUNDING)


def test_edm2_agrees_layer_by_layer(published):
    wanted = _arrays("tiny-forward")
    network, found = published.float(), {}
    for name, module in network.named_modules():
        module.register_forward_hook(lambda _, __, out, name=name: found.setdefault(f"act:{name}", out))
    network(wanted["x"], wanted["sigma"], wanted["class_idx"])
    network.logvar(wanted["sigma"])
    layers = [key for key in wanted if key.startswith("act:")]
    assert len(layers) > 40
    for key in layers:
        _close(found[key], wanted[key], ROUNDING)


def test_gains_round_as_published_only_in_float16(published):
    wanted = _arrays("tiny-forward")
    x, sigma, label = (wanted[key] for key in ("x", "sigma", "class_idx"))
    moved = (published(x, sigma, label) - published.float()(x, sigma, label)).abs().max()
    assert 5e-5 < moved < 1e-3


def _traced(network, label):
    """A denoiser that keeps what it was asked and what it said."""
    calls = []

    def denoiser(x, sigma):
        calls.append((x, network(x, sigma, label), sigma))
        return calls[-1][1]

    return denoiser, calls


@pytest.mark.parametrize(
    ("name", "n"), [pytest.param("det32", 32, marks=pytest.mark.verify), ("det6", 6), ("det6_f64", 6)]
)
def test_edm2_samples(published, name, n):
    wanted = _arrays("tiny-sampler")
    dtype = wanted[name].dtype
    denoiser, calls = _traced(published, wanted["class_idx"])
    found = sample_heun(denoiser, 80 * wanted["noise"].to(dtype), edm_sigmas(n))
    _follows(found, calls, wanted, name)


def test_edm2_samples_with_churn(published):
    wanted = _arrays("tiny-sampler")
    generators = [torch.Generator().manual_seed(seed) for seed in wanted["seeds"].tolist()]
    noise = torch.stack([torch.randn(published.shape, generator=one) for one in generators])
    label = torch.stack([torch.randint(10, (), generator=one) for one in generators])
    assert torch.equal(noise, wanted["noise"]) and torch.equal(label, wanted["class_idx"])
    denoiser, calls = _traced(published, label)
    churn = {"s_churn": 40, "s_min": 0.05, "s_max": 50, "s_noise": 1.003}
    found = sample_heun(denoiser, 80 * noise, edm_sigmas(8), generator=generators, **churn)
    _follows(found, calls, wanted, "churn8")


def _follows(found, calls, wanted, name):
    xs, denoised, sigmas = zip(*calls, strict=True)
    assert len(calls) == wanted[f"{name}_nfe"]
    torch.testing.assert_close(
        torch.tensor(sigmas, **FLOAT64), wanted[f"{name}_sigmas"].double(), rtol=2e-6, atol=0
    )
    if f"{name}_xs" in wanted:  # float32 states reach 320, two units in the last place are 6e-5 there
        _close(torch.stack(xs), wanted[f"{name}_xs"], 1e-4)
        _close(torch.stack(denoised), wanted[f"{name}_Ds"], ROUNDING)
    _close(found, wanted[name], ROUNDING)


def test_edm_agrees_with_the_reference(song):
    wanted = _arrays("edm-tiny-uncond")
    _close(song(wanted["x"], wanted["sigma"]), wanted["D"], ROUNDING)


def test_edm_samples(song):
    wanted = _arrays("edm-tiny-uncond")
    start = 80 * wanted["noise"].double()
    found = sample_heun(song, start, edm_sigmas(18))
    _close(found, wanted["det18"], ROUNDING)
    assert torch.equal((found * 127.5 + 128).clip(0, 255).to(torch.uint8), wanted["images"])
    _close(sample_ddim(song, start, edm_sigmas(6)), wanted["euler_edm6"], ROUNDING)


def test_edm_samples_with_churn(song):
    wanted = _arrays("edm-tiny-uncond")
    generators = [torch.Generator().manual_seed(seed) for seed in wanted["seeds"].tolist()]
    noise = torch.stack([torch.randn(song.shape, generator=one) for one in generators])
    assert torch.equal(noise, wanted["noise"])
    for one in generators:  # EDM draws at every step, also at the first, whose sigma 80 > s_max gets no noise
        torch.randn(song.shape, generator=one, **FLOAT64)
    churn = {"s_churn": 40, "s_min": 0.05, "s_max": 50, "s_noise": 1.003}
    found = sample_heun(song, 80 * noise.double(), edm_sigmas(6), generator=generators, **churn)
    _close(found, wanted["churn6"], 1e-4)


def test_edm_samples_by_euler_in_the_time_of_vp(song):
    # Karras et al. 2022, table 1, VP: times from 1 to 1e-3 and then 0, sigma and s of the linear VP process.
    wanted, process = _arrays("edm-tiny-uncond"), vp_linear()
    times = [*torch.linspace(1, 1e-3, 6, **FLOAT64), torch.zeros((), **FLOAT64)]
    x = wanted["noise"].double() * process.sigma(1) * process.s(1)
    for t, after in pairwise(times):
        s, sigma, rate = process.s(t), process.sigma(t), process.sigma_rate(t)
        slope = (rate / sigma + process.drift(t)) * x - rate * s / sigma * song(x / s, sigma)
        x = x + (after - t) * slope
    _close(x, wanted["euler_vp6"], ROUNDING)


# Sizes


@pytest.mark.parametrize(
    ("size", "millions", "gflop"),
    [
        ("xxs", 31.3, 22.7),
        ("xs", 124.71, 89.9),
        ("s", 280.21, 201.6),
        ("m", 497.81, 357.9),
        ("l", 777.50, 558.7),
        ("xl", 1119.28, 804.0),
        ("xxl", 1523.16, 1093.8),
    ],
)
def test_edm2_sizes(size, millions, gflop):
    with torch.device("meta"):
        network = edm2.Precond(64, 4, 1000, model_channels=edm2.SIZES[size])
    digits = 1 if size == "xxs" else 2
    assert round(_parameters(network) / 1e6, digits) == millions
    assert _gflop(network) == pytest.approx(gflop, rel=0.01)


@pytest.mark.parametrize(
    ("config", "parameters", "gflop"), [(CIFAR10, 55_733_891, 42.4), (FFHQ, 61_805_571, 83.7)]
)
def test_edm_sizes(config, parameters, gflop):
    with torch.device("meta"):
        network, vp = edm.EDMPrecond(**config), edm.VPPrecond(**config)
    assert _parameters(network) == _parameters(vp) == parameters
    assert _gflop(network) == pytest.approx(gflop, rel=0.01)


def _parameters(network):
    return sum(value.numel() for value in network.parameters())


def _gflop(network):
    label = torch.zeros(1, dtype=torch.int64, device="meta") if network.num_classes else None
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, *network.shape, device="meta"), 1.0, label)
    return counter.get_total_flops() / 1e9


def test_real_xs_loads_its_state_and_runs():
    with torch.device("meta"):
        network = edm2.Precond(64, 4, 1000, model_channels=edm2.SIZES["xs"])
    generator = torch.Generator().manual_seed(0)
    state = {
        key: torch.randn(value.shape, generator=generator) for key, value in network.state_dict().items()
    }
    network.load_state_dict(state, strict=True, assign=True)
    x = torch.randn(network.shape, generator=generator)[None]
    denoised = network(x, 1.0, torch.tensor([7]))
    assert denoised.shape == x.shape and denoised.isfinite().all() and not torch.equal(denoised, x)


# Magnitudes


def test_mp_silu_keeps_the_second_moment():
    z = torch.linspace(-12, 12, 20_001, **FLOAT64)
    density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
    # 0.596 is a rounding of the exact constant: half a unit of its last digit, doubled by the square.
    moment = torch.trapezoid(edm2.mp_silu(z).square() * density, z)
    assert moment.item() == pytest.approx(1, abs=2 * 0.0005 / 0.596)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_mp_sum_and_mp_cat_keep_magnitude(t):
    a, b = torch.linalg.qr(torch.randn(64, 2, generator=torch.Generator().manual_seed(1), **FLOAT64))[0].T
    assert edm2.mp_sum(a, b, t).norm().item() == pytest.approx(1, abs=1e-12)
    a, b = torch.ones(2, 6, 4, 4, **FLOAT64), torch.ones(2, 10, 4, 4, **FLOAT64)
    joined = edm2.mp_cat(a, b, t)
    assert joined.square().mean().item() == pytest.approx(1, abs=1e-12)
    parts = [part.square().sum().item() for part in joined.split([6, 10], 1)]
    assert parts[0] * t**2 == pytest.approx(parts[1] * (1 - t) ** 2, abs=1e-9)


@pytest.mark.parametrize("kernel", [(), (1, 1), (3, 3)])
def test_mp_conv_has_rows_of_unit_length_whatever_its_weights(kernel):
    torch.manual_seed(2)
    conv = edm2.MPConv(24, 16, kernel)
    x = torch.randn(4096, 24, *[3] * len(kernel))
    y = conv(x)[..., 1, 1] if kernel else conv(x)
    # Four standard errors of a variance over 4096 rows.
    assert y.var(0).numpy() == pytest.approx(1, abs=4 * math.sqrt(2 / 4096))
    conv.weight *= 7.0
    again = conv(x)[..., 1, 1] if kernel else conv(x)
    # The 1e-4 that keeps a norm off 0, over the least root mean square of a row, some 0.6.
    _close(again, y, 1e-4 / 0.6 * y.abs().max().item())
    _close(conv(x, 0.5), conv(x) / 2, 1e-5)


def test_fourier_features_and_normalized_pixels_have_unit_magnitude():
    torch.manual_seed(3)
    features = edm2.MPFourier(4096)(torch.tensor([-1.5, 0.0, 1.0]))
    # 2 cos^2 has variance 1/2 over a uniform phase.
    assert features.square().mean(1).numpy() == pytest.approx(1, abs=4 * math.sqrt(0.5 / 4096))
    pixels = edm2.normalize(30 * torch.randn(2, 48, 5, 5), dim=1)
    assert pixels.square().mean(1).sqrt().numpy() == pytest.approx(1, abs=1e-4)
    assert edm2.normalize(torch.zeros(2, 8)).abs().max() == 0


def test_fresh_edm2_keeps_magnitude_from_layer_to_layer():
    torch.manual_seed(4)
    network, found = edm2.Precond(**TINY2), {}
    for name, module in network.unet.named_modules():
        if name.count(".") == 1:
            module.register_forward_hook(lambda _, __, out, name=name: found.setdefault(name, out))
    x, sigma, label = _inputs(network, rows=8)
    network(x, (sigma.square() - 0.25).clamp_min(1e-4).sqrt(), label)
    sizes = torch.stack([value.square().mean().sqrt() for value in found.values()])
    assert len(sizes) > 30 and 0.7 < sizes.min() and sizes.max() < 1.4


# Preconditioning


def test_networks_that_say_nothing():
    network = edm.VPPrecond(**TINY)
    for value in network.parameters():
        value.zero_()
    x, sigma, _ = _inputs(network)
    assert torch.equal(network(x, sigma), x)
    fresh = edm2.Precond(**TINY2)  # its output gain starts at 0
    x, sigma, label = _inputs(fresh)
    skip = 0.25 / (sigma.square() + 0.25)
    _close(fresh(x, sigma, label), skip[:, None, None, None] * x, 1e-6)


def test_vp_times_and_levels_are_inverse():
    network, process = edm.VPPrecond(**TINY), vp_linear()
    t = torch.logspace(-5, 0, 61, **FLOAT64)
    sigma = torch.logspace(math.log10(network.sigma_min), math.log10(network.sigma_max), 61, **FLOAT64)
    torch.testing.assert_close(network.sigma_inv(network.sigma(t)), t, rtol=1e-12, atol=0)
    torch.testing.assert_close(network.sigma(network.sigma_inv(sigma)), sigma, rtol=1e-12, atol=0)
    torch.testing.assert_close(network.sigma(t), process.sigma(t), rtol=1e-14, atol=0)
    assert network.sigma_min == pytest.approx(process.sigma(1e-5).item(), rel=1e-12)
    assert network.sigma_max == pytest.approx(math.sqrt(math.exp(19.9 / 2 + 0.1) - 1), rel=1e-12)
    skip, out, scale, noise = network.coefficients(sigma)
    assert (skip == 1).all() and torch.equal(out, -sigma)
    torch.testing.assert_close(scale, 1 / (sigma**2 + 1).sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(noise[[0, -1]], torch.tensor([999e-5, 999], **FLOAT64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("build", BUILDERS[:2], ids=["edm2", "edm"])
def test_edm_coefficients_give_unit_variances(build):
    network, sigma = build(), torch.logspace(-3, 2, 31, **FLOAT64)
    skip, out, scale, noise = network.coefficients(sigma)
    # Karras et al. 2022, appendix B.6: unit variance of the input and of the target, with the smallest c_out.
    torch.testing.assert_close(scale**2 * (sigma**2 + 0.25), torch.ones_like(sigma))
    torch.testing.assert_close((1 - skip) ** 2 * 0.25 + skip**2 * sigma**2, out**2)
    torch.testing.assert_close(noise, sigma.log() / 4)


# Protocol


@ALL
def test_config_rebuilds_the_network(build):
    network = build()
    again = type(network)(**json.loads(json.dumps(network.config, allow_nan=False)))
    again.load_state_dict(network.state_dict(), strict=True)
    assert again.config == network.config
    x, sigma, label = _inputs(network)
    assert torch.equal(again.eval()(x, sigma, label), network.eval()(x, sigma, label))
    assert network.shape == (network.config["img_channels"], 16, 16) and network.num_classes == 10
    assert network.sigma_data == 0.5


@ALL
def test_rows_do_not_meet(build):
    network = _random(build())
    x, sigma, label = _inputs(network, rows=5)
    whole = network(x, sigma, label)
    parts = [network(*part) for part in zip(x.split(2), sigma.split(2), label.split(2), strict=True)]
    tolerance = ROUNDING * max(1.0, whole.abs().max().item())
    _close(torch.cat(parts), whole, tolerance)
    _close(network(x[2:3], float(sigma[2]), label[2:3]), whole[2:3], tolerance)


@ALL
def test_levels_in_every_shape(build):
    network = _random(build())
    x, sigma, label = _inputs(network)
    assert torch.equal(network(x, sigma[:, None, None, None], label), network(x, sigma, label))
    half, whole = torch.full((1, 1, 1, 1), 0.5), network(x, torch.full((4,), 0.5), label)
    for level in (
        0.5,
        np.float64(0.5),
        torch.tensor(0.5),
        torch.tensor([0.5]),
        half,
        half.double(),
        half.half(),
    ):
        assert torch.equal(network(x, level, label), whole)


@ALL
def test_labels_matter_and_none_is_no_class(build):
    network = _random(build())
    x, sigma, label = _inputs(network)
    assert not torch.allclose(network(x, sigma, label), network(x, sigma, (label + 1) % 10))
    nothing = network(x, sigma)
    weight = network.unet.emb_label.weight if hasattr(network, "unet") else network.model.map_label.weight
    weight.zero_()
    assert torch.equal(network(x, sigma, label), nothing)


@ALL
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_of_x_is_kept(build, dtype):
    network = _random(build())
    x, sigma, label = _inputs(network, dtype=dtype)
    found = network(x, sigma.double(), label)
    assert found.dtype == dtype
    assert torch.equal(found, network(x.float(), sigma, label).to(dtype))


@ALL
def test_half_precision_inside(build):
    network = _random(build())
    x, sigma, label = _inputs(network, rows=2)
    classes, noise = torch.nn.functional.one_hot(label, 10).float(), sigma.log() / 4
    x = x / (sigma.square() + 0.25).sqrt()[:, None, None, None]
    found, wanted = network.raw(x.half(), noise, classes), network.raw(x, noise, classes)
    assert found.dtype == torch.float16
    # Some fifty layers, each rounded to 2^-11.
    assert (found - wanted).norm() < 50 * 2**-11 * wanted.norm()


# A block of each kind, at two resolutions; more of them are the same code, a second of tracing each.
SHORT = {"num_blocks": 1, "channel_mult": [1, 2], "attn_resolutions": [8], "label_dim": 10}


@pytest.mark.parametrize(
    "network",
    [
        edm2.Precond(**TINY2 | SHORT),
        edm.EDMPrecond(**TINY | SHORT, augment_dim=9),
        edm.VPPrecond(**TINY | SHORT),
    ],
    ids=["edm2", "edm", "vp"],
)
def test_compiles_into_one_graph(network):
    network = _random(network)
    x, sigma, label = _inputs(network)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    for arguments in ((x, sigma, label), (x, 1.5)):
        _close(compiled(*arguments), network(*arguments), ROUNDING)


@ALL
def test_channels_last(build):
    network = _random(build())
    x, sigma, label = _inputs(network)
    wanted = network(x, sigma, label)
    network.to(memory_format=torch.channels_last)
    found = network(x.to(memory_format=torch.channels_last), sigma, label)
    assert found.is_contiguous(memory_format=torch.channels_last)
    _close(found, wanted, ROUNDING * max(1.0, wanted.abs().max().item()))


@pytest.mark.parametrize("labels", [0, 10])
def test_colours_with_and_without_classes(labels):
    built = edm2.Precond(16, 3, labels, model_channels=32), edm.EDMPrecond(**TINY, label_dim=labels)
    for network in built:
        _random(network)
        x, sigma, label = _inputs(network)
        assert network.num_classes == labels and network.shape == (3, 16, 16)
        assert network(x, sigma, label).isfinite().all()
    (first, *_), shape = built[0].unet.enc.values(), (32, 4, 3, 3)
    assert first.weight.shape == shape


def test_augmentation_weights_are_kept_and_not_used():
    network = _random(edm.EDMPrecond(**TINY, augment_dim=9))
    x, sigma, _ = _inputs(network)
    before = network(x, sigma)
    network.model.map_augment.weight.fill_(9.0)
    assert torch.equal(network(x, sigma), before)


def test_logvar_takes_numbers_and_levels():
    network = _random(edm2.Precond(**TINY2))
    sigma = torch.tensor([0.1, 2.0])
    assert network.logvar(sigma).shape == (2,)
    _close(network.logvar(2.0), network.logvar(sigma)[1:], 1e-6)
    with pytest.raises(ValueError, match="sigma = nan"):
        network.logvar(torch.tensor([1.0, math.nan]))
    with pytest.raises(ValueError, match="pass a number or one dimension"):
        network.logvar(torch.ones(2, 2))


# Bad input


@ALL
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 5, 16, 16)}, "x is torch.float32 of shape"),
        ({"x": torch.zeros(2, 3, 8, 8)}, "this network takes floats of shape"),
        ({"x": torch.zeros(3, 16, 16)}, "this network takes floats of shape"),
        ({"x": torch.zeros(2, 4, 16, 16, dtype=torch.int64)}, "x is torch.int64"),
        ({"sigma": 0.0}, "sigma = 0.0; noise levels are finite and above 0"),
        ({"sigma": torch.tensor([1.0, -1.0])}, "sigma = -1.0"),
        ({"sigma": math.nan}, "sigma = nan"),
        ({"sigma": math.inf}, "sigma = inf"),
        ({"sigma": "one"}, "sigma = 'one' is not numeric"),
        ({"sigma": torch.ones(3)}, r"sigma has shape \(3,\)"),
        ({"sigma": torch.ones(1, 2)}, r"sigma has shape \(1, 2\)"),
        ({"sigma": torch.ones(3, 1, 1, 1)}, r"sigma has shape \(3, 1, 1, 1\)"),
        ({"sigma": torch.ones(2, 1, 16, 16)}, r"sigma has shape \(2, 1, 16, 16\)"),
        ({"sigma": torch.ones(0)}, r"sigma has shape \(0,\)"),
        ({"label": torch.tensor([0, 10])}, "label runs from 0 to 10; classes are 0 to 9"),
        ({"label": torch.tensor([-1, 0])}, "label runs from -1"),
        ({"label": torch.tensor([0])}, "label is torch.int64 of shape"),
        ({"label": [0, 1]}, r"label is \[0, 1\]; pass one int64"),
        ({"label": torch.zeros(2, 10)}, "label is torch.float32"),
        ({"label": torch.tensor([0, 1], dtype=torch.int32)}, "label is torch.int32"),
    ],
)
def test_bad_input(build, change, message):
    network = build()
    given = {"x": torch.zeros(2, *network.shape), "sigma": 1.0, "label": torch.tensor([0, 1])} | change
    with pytest.raises(ValueError, match=message):
        network(**given)


def test_labels_for_an_unconditional_network():
    with pytest.raises(ValueError, match="label was passed to an unconditional network"):
        edm.EDMPrecond(**TINY)(torch.zeros(1, 3, 16, 16), 1.0, torch.tensor([0]))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (edm.EDMPrecond, {"model_type": "DhariwalUNet"}, "'SongUNet' is the one supported"),
        (edm.VPPrecond, {"model_type": "DhariwalUNet"}, "'SongUNet' is the one supported"),
        (edm.EDMPrecond, {"embedding_type": "fourier"}, "'positional' is the one supported"),
        (edm.EDMPrecond, {"encoder_type": "residual"}, "encoder_type = 'residual'; 'standard'"),
        (edm.EDMPrecond, {"decoder_type": "skip"}, "decoder_type = 'skip'; 'standard'"),
        (edm.EDMPrecond, {"resample_filter": [1, 3, 3, 1]}, r"\[1, 1\] is the one supported"),
        (edm.EDMPrecond, {"img_resolution": 15}, "img_resolution = 15 does not fit"),
        (edm.EDMPrecond, {"label_dim": -1}, "label_dim = -1"),
        (edm.EDMPrecond, {"sigma_data": math.nan}, "sigma_data"),
        (edm.EDMPrecond, {"sigma_min": 2, "sigma_max": 1}, "sigma_min = 2, sigma_max = 1"),
        (edm.EDMPrecond, {"model_channels": 33}, "model_channels = 33"),
        (edm.VPPrecond, {"epsilon_t": 1.0}, "epsilon_t = 1.0"),
        (edm.VPPrecond, {"M": 1}, "M = 1"),
        (edm2.Precond, {"label_dim": 0, "resample_filter": [1, 2, 1]}, r"\[1, 1\] is the one supported"),
        (edm2.Precond, {"label_dim": 0, "res_balance": 1.5}, "res_balance = 1.5"),
        (edm2.Precond, {"label_dim": 0, "clip_act": 0}, "clip_act = 0"),
        (
            edm2.Precond,
            {"label_dim": 0, "img_resolution": 12, "channel_mult": [1, 1, 1, 1]},
            "img_resolution",
        ),
    ],
)
def test_bad_architectures(kind, change, message):
    with pytest.raises(ValueError, match=message):
        kind(**{**TINY, **change})


def test_vp_differs_from_the_official_float32_as_its_docstring_says():
    """The textbook formulas in float32, which lose digits where exp and log are near 1."""
    network = edm.VPPrecond(**TINY)
    t = torch.tensor(network.epsilon_t)
    official = float(((network.beta_d * t**2 / 2 + network.beta_min * t).exp() - 1).sqrt())
    assert official == pytest.approx(9.766e-4, rel=1e-4) and network.sigma_min == pytest.approx(
        1.0005e-3, rel=1e-4
    )
    for low, high, bound in ((1e-3, 2e-3, 0.06), (2e-3, 0.01, 0.015), (0.01, 0.03, 6e-4), (0.03, 80, 5e-5)):
        sigma = torch.logspace(math.log10(low), math.log10(high), 5001)
        root = (network.beta_min**2 + 2 * network.beta_d * (1 + sigma**2).log()).sqrt()
        official = (root - network.beta_min) / network.beta_d * (network.M - 1)
        ours = network.coefficients(sigma)[3]
        exact = network.coefficients(sigma.double())[3]
        assert ((official - ours) / ours).abs().max() < bound and (official - ours).abs().max() < 1e-3
        # Ours: some ten roundings of float32.
        torch.testing.assert_close(ours.double(), exact, rtol=10 * 2.0**-24, atol=0)
