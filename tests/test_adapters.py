"""Networks of every parameterisation against the closed form of a Gaussian, and what is refused."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch

from entropic import adapters, edm_sigmas, noise, sample_ddim, sample_ddim_stochastic, sample_heun
from entropic.adapters import from_edm, from_epsilon, from_flow, from_score, from_v
from entropic.estimate import estimate
from entropic.identity import content_sha256

F64 = torch.float64
MEAN = torch.tensor([0.3, -0.2, 0.1], dtype=F64)
DEVIATIONS = torch.tensor([2.0, 0.5, 0.05], dtype=F64)
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=F64).square()  # Stable Diffusion's
ALPHAS = (1 - BETAS).cumprod(0)
TABLE = ((1 - ALPHAS) / ALPHAS).sqrt()


def denoiser(x, sigma):
    """E[x0 | x] of the Gaussian; sigma a number or (N, 1)."""
    return MEAN + (x - MEAN) * DEVIATIONS**2 / (DEVIATIONS**2 + sigma**2)


def in_table(t):
    """The noise level that a training time of the table stands for."""
    return torch.from_numpy(np.exp(np.interp(t.numpy(), np.arange(1000), TABLE.log().numpy())))[:, None]


def galaxies():
    """A process of its own: s = exp(-t / 2), sigma^2 = exp(t) - 1."""
    return noise.Process(
        "int_beta = t",
        lambda t: (-t / 2).exp(),
        lambda t: torch.expm1(t).sqrt(),
        lambda sigma: torch.log1p(sigma.square()),
        0.0,
        10.0,
    )


def epsilon(y, t):
    sigma = in_table(t)
    x = y * (1 + sigma**2).sqrt()
    return (x - denoiser(x, sigma)) / sigma


def v(y, t):
    """alpha noise - sqrt(1 - alpha^2) x0, from Salimans and Ho's own definition of v."""
    sigma = in_table(t)
    alpha = 1 / (1 + sigma**2).sqrt()
    x = y / alpha
    x0 = denoiser(x, sigma)
    return alpha * (x - x0) / sigma - (1 - alpha**2).sqrt() * x0


def velocity(y, t):
    """noise - x0 at y = (1 - t) x0 + t noise, the network hearing 1000 t."""
    t = t[:, None] / 1000
    x, sigma = y / (1 - t), t / (1 - t)
    x0 = denoiser(x, sigma)
    return (x - x0) / sigma - x0


def velocity_to_data(y, t):
    """x0 - noise at y = t x0 + (1 - t) noise."""
    t = t[:, None]
    x, sigma = y / t, (1 - t) / t
    x0 = denoiser(x, sigma)
    return x0 - (x - x0) / sigma


def score(process):
    """The score of the Gaussian N(s mean, s^2 (c^2 + sigma^2)), not by way of a denoiser."""

    def network(y, t):
        s, sigma = process.s(t)[:, None], process.sigma(t)[:, None]
        return -(y - s * MEAN) / (s**2 * (DEVIATIONS**2 + sigma**2))

    return network


class Official(torch.nn.Module):
    """An EDM network's signature: sigma a tensor, classes one-hot."""

    label_dim, sigma_min, sigma_max = 4, 0.01, 100.0

    def forward(self, x, sigma, class_labels=None, force_fp32=False, **kwargs):
        assert torch.is_tensor(sigma) and sigma.shape == (len(x),)
        found = denoiser(x, sigma[:, None].to(x.dtype))
        if class_labels is not None:
            assert class_labels.shape == (len(x), 4) and class_labels.is_floating_point()
            found = found + class_labels[:, :1].to(x.dtype)
        return found


ADAPTED = {
    "epsilon": from_epsilon(epsilon, ALPHAS),
    "v": from_v(v, ALPHAS),
    "flow": from_flow(velocity, time_scale=1000),
    "flow to data": from_flow(velocity_to_data, data_at=1),
    "score of a VP process": from_score(score(noise.vp_linear()), noise.vp_linear()),
    "score of x itself": from_score(score(noise.edm()), noise.edm()),
    "score of the galaxies": from_score(score(galaxies()), galaxies()),
    "edm": from_edm(Official()),
}


@pytest.mark.parametrize("name", ADAPTED)
@pytest.mark.parametrize("sigma", [0.05, 1.0, 12.0])
def test_is_the_closed_form_in_every_parameterisation(name, sigma):
    adapted = ADAPTED[name]
    x = MEAN + sigma * torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    # times are told in float32 by a network without weights of float64: sigma moves by d log sigma = dt dlog(sigma)/dt
    expected = denoiser(x, sigma)
    for level in (sigma, torch.tensor(sigma), torch.full((5,), sigma, dtype=F64)):
        torch.testing.assert_close(adapted(x, level), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ADAPTED)
def test_each_row_has_its_own_level(name):
    adapted = ADAPTED[name]
    sigma = torch.tensor([0.05, 0.5, 3.0, 12.0], dtype=F64)
    x = sigma[:, None] * torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    torch.testing.assert_close(adapted(x, sigma), denoiser(x, sigma[:, None]), rtol=1e-6, atol=1e-6)


def test_the_table_s_times_are_whole_at_its_own_levels():
    told = []

    def network(y, t):
        told.append(t)
        return y

    from_epsilon(network, ALPHAS)(torch.zeros(3, 2), TABLE[[0, 500, 999]])
    torch.testing.assert_close(told[0], torch.tensor([0.0, 500.0, 999.0]), rtol=1e-6, atol=1e-6)


def test_knows_its_range():
    adapted = ADAPTED["epsilon"]
    assert (adapted.sigma_min, adapted.sigma_max) == pytest.approx((0.0291675, 14.6146), rel=1e-4)
    assert "0.0291" in repr(adapted) and "epsilon" in repr(adapted)
    x = torch.zeros(2, 3)
    adapted(x, float(np.float32(adapted.sigma_max)))
    for sigma in (0.02, 80.0):
        with pytest.raises(ValueError, match=rf"sigma = {sigma}.* from 0\.0291\d* to 14\.61"):
            adapted(x, sigma)
    official = ADAPTED["edm"]
    assert (official.sigma_min, official.sigma_max) == (0.01, 100.0)


def test_derivatives_are_those_of_the_closed_form():
    """Forward and backward, in x and in sigma: the time of a table is piecewise linear in log sigma."""
    adapted = ADAPTED["epsilon"]
    x, direction = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    _, slope = torch.func.jvp(
        lambda x: from_epsilon(lambda y, t: 0.5 * y, ALPHAS)(x, 2.0), (x,), (direction,)
    )
    torch.testing.assert_close(slope, direction * (1 - 1 / 5**0.5))
    sigma = torch.tensor(2.0, dtype=F64, requires_grad=True)
    times = adapted._process.t(sigma)
    (slope,) = torch.autograd.grad(times, sigma)
    right = int(times) + 1
    expected = 1 / (2 * (TABLE[right] / TABLE[right - 1]).log())
    torch.testing.assert_close(slope, expected)


def test_a_default_device_of_torch_s_changes_nothing():
    with torch.device("meta"):
        adapted = from_epsilon(epsilon, ALPHAS)
    x = torch.randn(4, 3, dtype=F64)
    assert torch.equal(adapted(x, 2.0), ADAPTED["epsilon"](x, 2.0))


def test_no_state_is_rounded_to_8_bits():
    """Weights that are stored in 8 bits are cast for each layer; the state is not."""
    network = Linear(torch.float32).to(torch.float8_e4m3fn)
    network.forward = lambda y, t: (told.append(y.dtype), y)[1]
    told = []
    from_epsilon(network, ALPHAS)(torch.zeros(2, 3), 1.0)
    assert told == [torch.float32]


def test_a_table_that_ends_at_infinity_loses_its_end():
    alphas = ALPHAS.sqrt()
    alphas = ((alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])).square()  # zero terminal SNR
    assert alphas[-1] == 0
    adapted = from_v(v, alphas)
    assert math.isfinite(adapted.sigma_max) and adapted.sigma_max > 100


class Linear(torch.nn.Module):
    """A network with weights, in the dtype that is asked for; predicts noise."""

    def __init__(self, dtype):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, dtype=dtype))
        self.seen = []

    def forward(self, y, t):
        self.seen.append((y.dtype, t.dtype))
        return self.weight * y


@pytest.mark.parametrize(
    ("own", "clock"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_the_network_keeps_its_dtype_and_the_state_its_own(own, clock):
    network = Linear(own)
    answer = from_epsilon(network, ALPHAS)(torch.ones(2, 3), 1.0)
    assert network.seen == [(own, clock)] and answer.dtype == torch.float32
    # x - sigma F with F = s x = 0.7071 in the network's dtype
    expected = 1 - torch.tensor(0.5**0.5, dtype=torch.float32).to(own).float()
    torch.testing.assert_close(answer, expected.expand(2, 3), rtol=1e-6, atol=0)
    assert from_epsilon(network, ALPHAS)(torch.ones(2, 3, dtype=torch.float16), 1.0).dtype == torch.float32


# Labels


def conditioned(y, t, embedding, *, added, name="text"):
    assert (
        embedding.shape[0] == added["pooled"][0].shape[0] == len(y)
        and name == "text"
        and added["none"] is None
    )
    return y + embedding.sum((1, 2))[:, None] + added["pooled"][0][:, :1]


def labels_of(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "embedding": torch.randn(count, 2, 4, generator=generator),
        "added": {"pooled": (torch.randn(count, 3, generator=generator),), "none": None},
        "name": "text",
    }


def test_nested_labels_reach_the_network():
    x, labels = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)), labels_of(3, 1)
    adapted = from_epsilon(conditioned, ALPHAS)
    noise_ = x / 2**0.5 + labels["embedding"].sum((1, 2))[:, None] + labels["added"]["pooled"][0][:, :1]
    torch.testing.assert_close(adapted(x, 1.0, labels), x - noise_)
    as_words = from_epsilon(lambda y, t, a, b: y + a + b, ALPHAS)
    ones = torch.ones(3, 3)
    torch.testing.assert_close(as_words(x, 1.0, (ones, ones)), x - x / 2**0.5 - 2)


def test_guidance_is_one_call_and_the_formula():
    calls = []

    def network(y, t, *words, **named):
        calls.append(len(y))
        return conditioned(y, t, *words, **named)

    x, labels, without = torch.randn(3, 3, dtype=F64), labels_of(3, 1), labels_of(1, 2)
    guided = from_epsilon(network, ALPHAS, guidance=2.5, unconditional=without)(x, 1.0, labels)
    assert calls == [6]
    plain = from_epsilon(conditioned, ALPHAS)
    weak = plain(x, 1.0, adapters.rows_of(without, torch.zeros(3, dtype=torch.long)))
    torch.testing.assert_close(guided, weak + 2.5 * (plain(x, 1.0, labels) - weak))


def test_guidance_wants_both_halves_alike():
    with pytest.raises(ValueError, match="pass both"):
        from_epsilon(conditioned, ALPHAS, guidance=2.0)
    with pytest.raises(ValueError, match="pass both"):
        from_epsilon(conditioned, ALPHAS, unconditional=labels_of(1, 0))
    guided = from_epsilon(conditioned, ALPHAS, guidance=2.0, unconditional=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="differ in structure"):
        guided(torch.zeros(3, 3), 1.0, labels_of(3, 1))
    wrong = from_epsilon(conditioned, ALPHAS, guidance=2.0, unconditional=labels_of(2, 0))
    with pytest.raises(ValueError, match="x has 3 rows"):
        wrong(torch.zeros(3, 3), 1.0, labels_of(3, 1))


@pytest.mark.parametrize(
    ("without", "labels"),
    [
        (3, torch.zeros(3)),
        ([3], torch.zeros(1)),
        ("", "cat"),
        ({"text": None}, {"text": torch.zeros(3)}),
        ({"text": torch.zeros(1)}, {"text": torch.zeros(3), "more": torch.zeros(3)}),
    ],
)
def test_guidance_never_loses_a_label(without, labels):
    """A constant in place of a tensor would be the condition of both halves, and a lacking name would be lost."""
    guided = from_epsilon(lambda y, t, *_, **__: y, ALPHAS, guidance=2.0, unconditional=without)
    count = 1 if without == [3] else 3
    with pytest.raises(ValueError, match="differ in structure"):
        guided(torch.zeros(count, 3), 1.0, labels)


class Pair(NamedTuple):
    first: object
    second: object


def test_arrays_and_named_tuples_are_labels_row_by_row():
    labels = Pair(np.arange(4.0), {"inner": (torch.arange(4), np.arange(4))})
    found = adapters.rows_of(labels, torch.tensor([2, 0]))
    assert isinstance(found, Pair) and found.first.tolist() == [2, 0]
    assert [one.tolist() for one in found.second["inner"]] == [[2, 0], [2, 0]]
    x, sigmas = torch.randn(20, 3, dtype=F64), torch.logspace(-1, 1, 4)
    with pytest.raises(ValueError, match=r"labels\['y'\] has shape \(3,\)"):
        estimate(denoiser, x, sigmas, labels={"y": np.arange(3)}, samples=20)
    for words in (["cat"] * 20, np.array(["cat"] * 20), {"y": np.array(["cat"] * 20)}):
        with pytest.raises(ValueError, match=r"of numbers|are not numbers"):
            estimate(denoiser, x, sigmas, labels=words, samples=20)
    told = []
    estimate(
        lambda x, sigma, y: (told.append(y), denoiser(x, sigma))[1],
        x,
        sigmas,
        labels=[torch.arange(20), torch.arange(20)],
        samples=20,
        batch=5,
    )
    assert [one.shape for one in told[0]] == [(5,), (5,)]


def test_classes_of_edm_are_whole_numbers_or_one_hot():
    x, adapted = torch.zeros(3, 3), ADAPTED["edm"]
    classes = torch.tensor([0, 2, 0])
    one_hot = torch.nn.functional.one_hot(classes, 4).float()
    assert torch.equal(adapted(x, 1.0, classes), adapted(x, 1.0, one_hot))
    difference = adapted(x, 1.0, classes) - adapted(x, 1.0)
    torch.testing.assert_close(difference, torch.tensor([1.0, 0.0, 1.0])[:, None].expand(3, 3))


def test_samplers_and_estimate_take_the_same_labels(tmp_path):
    """No lambda: the same calls as through one, and a store that knows other labels."""

    def network(x, sigma, labels):
        return denoiser(x, sigma) + labels["shift"]

    count = 40
    x = MEAN + DEVIATIONS * torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    labels = {"shift": 0.01 * torch.arange(count, dtype=F64)[:, None]}
    sigmas = edm_sigmas(5, 0.02, 20.0)
    for sample in (sample_ddim, sample_heun, sample_ddim_stochastic):
        given = {"generator": torch.Generator().manual_seed(3)}
        found = sample(network, x, sigmas, labels=labels, **given)
        given["generator"].manual_seed(3)
        assert torch.equal(found, sample(lambda x, sigma: network(x, sigma, labels), x, sigmas, **given))
    levels = torch.logspace(-1, 1, 5, dtype=F64)
    options = {"samples": 30, "batch": 7, "tag": "shifted", "store": tmp_path / "kept.npz"}
    found = estimate(network, x, levels, labels=labels, **options)
    plain = estimate(denoiser, x, levels, samples=30)
    shift = labels["shift"][found.rows[:, 0], 0]
    assert (found.errors != plain.errors).any()
    error = found.errors.sqrt() - plain.errors.sqrt()
    assert (error.abs() <= shift[:, None] * 3**0.5 + 1e-12).all()  # of the row itself, not of another
    with pytest.raises(ValueError, match="labels"):
        estimate(network, x, levels, labels={"shift": labels["shift"] + 1}, **options)
    with pytest.raises(ValueError, match=r"labels\['shift'\] has shape \(39, 1\)"):
        estimate(network, x, levels, labels={"shift": labels["shift"][1:]}, samples=30)


def test_latents_are_seen_in_the_network_s_units():
    """A network trained on (x - shift) scale: its law is that of x, in other units."""
    scale, shift = 0.2, torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    x = torch.randn(5, 3, dtype=F64)
    adapted = from_epsilon(epsilon, ALPHAS, scale=scale, shift=shift)
    assert adapted.sigma_max == pytest.approx(ADAPTED["epsilon"].sigma_max / scale)
    inner = ADAPTED["epsilon"]((x - shift) * scale, 2.0 * scale)
    torch.testing.assert_close(adapted(x, 2.0), inner / scale + shift, rtol=1e-12, atol=1e-12)


def test_a_denoiser_is_known_by_its_content():
    """`estimate` with a store goes on with the same denoiser, and with no other."""

    def made(weight=1.0, alphas=ALPHAS, guidance=2.0):
        network = Linear(F64)
        network.weight.data.fill_(weight)
        without = torch.zeros(1, 2)
        return (
            from_epsilon(network, alphas),
            from_v(network, alphas),
            from_flow(network),
            from_flow(network, data_at=1),
            from_score(network, galaxies()),
            from_edm(network),
            from_epsilon(network, alphas, guidance=guidance, unconditional=without),
        )

    def told(denoisers):
        return [content_sha256(one, "denoiser") for one in denoisers]

    assert told(made()) == told(made()) and len(set(told(made()))) == 7
    assert not set(told(made())) & set(told(made(weight=2.0)))
    assert told(made())[6] != told(made(guidance=3.0))[6]
    assert told(made())[0] != told(made(alphas=ALPHAS.sqrt()))[0]


# What networks answer, and what is refused


class Output:
    def __init__(self, sample):
        self.sample = sample


@pytest.mark.parametrize(
    "wrapped", [lambda F: (F, None), lambda F: [F], lambda F: Output(F), lambda F: torch.cat([F, F - 1], 1)]
)
def test_the_prediction_is_found_in_what_a_network_answers(wrapped):
    x = torch.randn(4, 3, dtype=F64)
    found = from_epsilon(lambda y, t: wrapped(epsilon(y, t)), ALPHAS)(x, 1.0)
    assert torch.equal(found, ADAPTED["epsilon"](x, 1.0))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda y: y[:, :2], r"shape \(4, 2\) for a state of shape \(4, 3\)"),
        (lambda y: None, "answered NoneType"),
        (lambda y: (), "answered tuple"),
        (lambda y: y.long(), "answered Tensor"),
    ],
)
def test_what_is_no_prediction_is_named(answer, said):
    with pytest.raises(ValueError, match=said):
        from_epsilon(lambda y, t: answer(y), ALPHAS)(torch.zeros(4, 3), 1.0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: from_epsilon(epsilon, ALPHAS.flip(0)), "reversed"),
        (lambda: from_epsilon(epsilon, TABLE), "between 0 and 1"),
        (lambda: from_epsilon(epsilon, torch.ones(2, 2) / 2), "one dimension"),
        (lambda: from_epsilon(None, ALPHAS), "network = None"),
        (lambda: from_epsilon(epsilon, ALPHAS, scale=0.0), "scale"),
        (lambda: from_epsilon(epsilon, ALPHAS, guidance=math.nan, unconditional=1), "guidance"),
        (lambda: from_flow(velocity, data_at=2), "data_at = 2"),
        (lambda: from_flow(velocity, time_scale=-1), "time_scale"),
    ],
)
def test_bad_arguments_are_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("sigma", [math.nan, 0.0, -1.0, torch.ones(2), torch.ones(3, 1), "much"])
def test_bad_levels_are_named(sigma):
    with pytest.raises(ValueError, match="sigma"):
        ADAPTED["epsilon"](torch.zeros(3, 3), sigma)


def test_a_state_that_is_none_is_named():
    for x in (torch.zeros(3, 3, dtype=torch.long), [1.0], torch.tensor(1.0)):
        with pytest.raises(ValueError, match="x ="):
            ADAPTED["epsilon"](x, 1.0)
