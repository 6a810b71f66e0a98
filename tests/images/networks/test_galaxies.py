"""The galaxy networks: the architecture against NumPy, the weights against numbers of their own package, bad files.

What needs no published weights is tested on files of random numbers; the rest is skipped where galaxygrad is missing.
"""

import copy
import importlib.util

import numpy as np
import pytest
import torch

from entropic import edm_sigmas, sample_heun
from entropic.files import file_sha256
from entropic.identity import content_sha256
from entropic.images.generate import generate
from entropic.images.networks import galaxies
from entropic.images.networks.galaxies import GALAXIES, load_galaxies, to_uint8_galaxies

# Scores by galaxygrad 0.2.1 itself (jax 0.10.2, equinox 0.13.8, float32) for the images of `_image`, at the pixels of
# `_pixels`: three at t = 0.01, then three at t = 3. They were rounded to six digits.
ORACLE = {
    "hsc-32": (-0.15087, -14.1783, -0.695957, 0.0398255, -5.40464, -0.852607),
    "hsc-64": (0.757331, -1.11625, 12.3005, 0.0222998, -2.36851, 1.73275),
    "hsc-log-32": (0.370859, -11.6488, -3.28699, -0.697843, -8.01022, -2.16404),
    "hsc-log-64": (0.275679, -7.12227, 1.35885, 0.900202, -4.32743, 1.15488),
    "ztf-32": (1.75549, -11.4488, -6.92527, 0.098579, -5.40265, -1.8955),
    "ztf-64": (1.33933, -0.802567, 11.396, 0.0099945, -1.94435, 2.71614),
    "lsst-60": (1.7279, -1.85228, -2.28094, 0.875392, -2.01372, -1.72102),
    "quasar-72": (-0.154846, -13.3189, -0.727553, -0.0789961, -4.47609, -0.834934),
    "roman-120": (8.76939, -1.71845, -6.20232, 5.81279, -5.12256, -6.11219),
}
published = pytest.mark.skipif(
    importlib.util.find_spec("galaxygrad") is None, reason=f"galaxygrad is missing: {galaxies.INSTALL}"
)
SIZES = {"side": 6, "patch": 2, "hidden": 5, "patch_width": 7, "hidden_width": 8, "blocks": 2, "t_max": 10.0}


def _image(side):
    row, column = np.mgrid[0:side, 0:side]
    blob = np.exp(-((row - side / 2) ** 2 + (column - side / 2.3) ** 2) / 20)
    return torch.from_numpy((2 * np.sin(0.7 * row + 0.3 * column) + 8 * blob).astype("f4"))[None, None]


def _pixels(side):
    middle = side // 2
    return (0, 0), (middle, middle - 3), (middle + 5, middle + 2)


def _arrays(seed=0):
    """The arrays of a small network of random numbers, in the order and with the shapes of a file."""
    rng = np.random.default_rng(seed)
    hidden, patch, patches = SIZES["hidden"], SIZES["patch"], (SIZES["side"] // SIZES["patch"]) ** 2
    wide, tall = SIZES["patch_width"], SIZES["hidden_width"]
    shapes = [(hidden, 2, patch, patch), (hidden, 1, 1), (1, hidden, patch, patch), (1, 1, 1)]
    block = [(wide, patches), (wide,), (patches, wide), (patches,)]
    block += [(tall, hidden), (tall,), (hidden, tall), (hidden,), *[(hidden, patches)] * 2]
    shapes += (block + [(patches, hidden)] * 2) * SIZES["blocks"] + [(hidden, patches)] * 2
    return [rng.normal(size=shape).astype("f4") / 2 for shape in shapes] + [np.asarray(SIZES["t_max"])]


def _write(path, arrays):
    with open(path, "wb") as file:
        for array in arrays:
            np.save(file, array)
    return path


def _norm(h, weight, bias):
    return (h - h.mean()) / np.sqrt(h.var() + 1e-5) * weight + bias


def _score(arrays, y, t):
    """The score of one image (side, side) by the formulas, a patch at a time, in float64."""
    arrays = iter([np.asarray(array, "f8") for array in arrays])

    def take(count):
        return [next(arrays) for _ in range(count)]

    w_in, b_in, w_out, b_out = take(4)
    hidden, _, patch, _ = w_in.shape
    count = len(y) // patch
    cells = [(i * patch, j * patch) for i in range(count) for j in range(count)]
    time = np.full((patch, patch), t / SIZES["t_max"])
    h = np.empty((hidden, len(cells)))
    for k, (i, j) in enumerate(cells):
        both = np.stack([y[i : i + patch, j : j + patch], time])
        h[:, k] = (w_in * both).sum((1, 2, 3)) + b_in[:, 0, 0]
    for _ in range(SIZES["blocks"]):
        w1, b1, w2, b2, v1, c1, v2, c2, *norms = take(12)
        n = _norm(h, *norms[:2])
        h = h + np.stack([w2 @ np.maximum(w1 @ row + b1, 0) + b2 for row in n])
        n = _norm(h.T, *norms[2:])
        h = h + np.stack([v2 @ np.maximum(v1 @ row + c1, 0) + c2 for row in n]).T
    h = _norm(h, *take(2))
    out = np.empty_like(y, dtype="f8")
    for k, (i, j) in enumerate(cells):
        # equinox convolves the spread-out image, so that a patch bears the kernel turned by 180 degrees.
        out[i : i + patch, j : j + patch] = np.einsum("h,hab->ab", h[:, k], w_out[0, :, ::-1, ::-1])
    return out + b_out[0, 0, 0]


@pytest.fixture(name="file")
def _file(tmp_path):
    return _write(tmp_path / "small.eqx", _arrays())


@pytest.fixture(name="network")
def _network(file):
    return load_galaxies(file)


# The architecture


def test_score_is_that_of_the_formulas(network):
    y = np.random.default_rng(1).normal(size=(3, 6, 6))
    t = [0.1, 2.0, 9.5]
    found = network.double().score(torch.from_numpy(y)[:, None], torch.tensor(t, dtype=torch.float64))[:, 0]
    wanted = [_score(_arrays(), *pair) for pair in zip(y, t, strict=True)]
    # Some hundreds of roundings of numbers of the order of 1; the weights are float32 in both.
    np.testing.assert_allclose(found.numpy(), np.stack(wanted), rtol=0, atol=1e-11)


def test_denoiser_is_tweedie_s_formula_in_the_frame_without_scale(network):
    x, sigma = torch.randn(2, 1, 6, 6, dtype=torch.float64), 3.0
    t, network = np.log1p(sigma**2), network.double()
    s = np.exp(-t / 2)
    score = network.score(s * x, torch.full((2,), t, dtype=torch.float64))
    torch.testing.assert_close(network(x, sigma), x + sigma**2 * s * score, rtol=1e-12, atol=1e-12)
    assert network.sigma_min == 0 and network.sigma_max == pytest.approx(np.sqrt(np.expm1(10)), rel=1e-14)
    assert torch.equal(network(x, 0.0), x)


def test_pieces_rows_and_levels_do_not_meet(network):
    """40 images are three pieces on a CPU; each image has its own level."""
    x, sigma = torch.randn(40, 1, 6, 6), torch.linspace(0.1, 100, 40)
    together = network(x, sigma)
    alone = torch.cat([network(x[k : k + 1], sigma[k].item()) for k in range(40)])
    # Matrix products of other sizes round otherwise: 1e-5 of |x + sigma z|, up to 10^2 here.
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types_of_states_and_weights(network, dtype):
    x = torch.randn(2, 1, 6, 6).to(dtype)
    assert network(x, 1.0).dtype == torch.promote_types(dtype, torch.float32)
    assert network(x, torch.tensor([1.0, 2.0])).shape == x.shape
    wide = copy.deepcopy(network).double()(x.double(), 1.0)
    torch.testing.assert_close(network(x, 1.0).double(), wide, rtol=1e-4, atol=1e-4)


def test_gradients_go_through(network):
    x = torch.randn(17, 1, 6, 6, dtype=torch.float64)
    sigma = torch.full((17,), 2.0, dtype=torch.float64)
    network = network.double()
    v = torch.randn_like(x)
    _, forward = torch.func.jvp(lambda x: network.score(x, sigma), (x,), (v,))
    x.requires_grad_()
    (back,) = torch.autograd.grad((network.score(x, sigma) * v).sum(), x)
    step = 1e-6
    with torch.no_grad():
        difference = (network.score(x + step * v, sigma) - network.score(x - step * v, sigma)) / (2 * step)
    torch.testing.assert_close(forward, difference, rtol=1e-6, atol=1e-6)
    assert back.isfinite().all()


def test_it_generates_and_is_known_by_its_content(network, tmp_path):
    assert content_sha256(network) == content_sha256(load_galaxies(_write(tmp_path / "b.eqx", _arrays())))
    assert content_sha256(network) != content_sha256(load_galaxies(_write(tmp_path / "c.eqx", _arrays(1))))
    made = generate(
        network, edm_sigmas(3, 0.01, 100), range(3), sampler=sample_heun, decode=to_uint8_galaxies
    )
    assert made.images.shape == (3, 1, 6, 6) and made.images.dtype == torch.uint8


def test_it_is_built_alike_whatever_the_caller_has_set(file):
    with torch.inference_mode():
        torch.set_default_dtype(torch.float64)
        try:
            network = load_galaxies(str(file))
        finally:
            torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in network.parameters()} == {torch.float32} and not network.training
    assert not any(p.requires_grad or p.is_inference() for p in network.parameters())
    assert network.config == SIZES
    assert network.info == {"name": None, "sha256": file_sha256(file), "data": None}


def test_pictures_are_clamped():
    x = torch.tensor([-3.0, 0.0, 5.0, 20.0, 90.0]).reshape(5, 1, 1, 1)
    assert to_uint8_galaxies(x).flatten().tolist() == [0, 0, 64, 255, 255]
    with pytest.raises(ValueError, match="nan"):
        to_uint8_galaxies(x * torch.nan)


# Bad input


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda net: net(torch.zeros(1, 1, 8, 8), 1.0), r"x has shape \(1, 1, 8, 8\)"),
        (lambda net: net(torch.zeros(1, 1, 6, 6) * torch.nan, 1.0), "nan"),
        (lambda net: net(torch.zeros(1, 1, 6, 6), 149.0), "sigma = 149.0; this network knows noise levels"),
        (lambda net: net(torch.zeros(1, 1, 6, 6), -1.0), "sigma = -1.0"),
        (lambda net: net(torch.zeros(2, 1, 6, 6), torch.ones(3)), r"sigma has shape \(3,\)"),
        (lambda net: net(torch.zeros(1, 1, 6, 6), 1.0, torch.zeros(1)), "unconditional"),
        (lambda net: load_galaxies("hsc-33"), "name = 'hsc-33'; use one of hsc-32, hsc-64"),
    ],
)
def test_bad_input_is_named(network, call, words):
    with pytest.raises(ValueError, match=words):
        call(network)


DAMAGE = {
    "cut": lambda arrays, data: data[:-40],
    "cut after an array": lambda arrays, data: data[: -len(_bytes(arrays[-1]))],
    "empty": lambda arrays, data: b"",
    "text": lambda arrays, data: b"<html>not found</html>",
    "more": lambda arrays, data: data + b"x",
    "not a number": lambda arrays, data: _bytes(arrays[0] * np.nan) + data[len(_bytes(arrays[0])) :],
    "another shape": lambda arrays, data: b"".join(map(_bytes, [arrays[0].T, *arrays[1:]])),
    "objects": lambda arrays, data: _bytes(np.array([{}], dtype=object), allow_pickle=True) + data,
    "zip": lambda arrays, data: b"PK\x03\x04" + data,
}


def _bytes(array, allow_pickle=False):
    import io

    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_files_are_refused_by_name(tmp_path, how):
    arrays, path = _arrays(), tmp_path / "damaged.eqx"
    path.write_bytes(DAMAGE[how](arrays, b"".join(map(_bytes, arrays))))
    with pytest.raises(ValueError, match=r"damaged\.eqx cannot be read"):
        load_galaxies(path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.eqx"):
        load_galaxies(tmp_path / "none.eqx")


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(galaxies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps galaxygrad==0\.2\.1 .*'galaxies'"):
        load_galaxies("hsc-32")


@pytest.fixture(name="package")
def _package(tmp_path, monkeypatch):
    """A package galaxygrad without weights, whose import fails."""
    folder = tmp_path / "galaxygrad"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    importlib.invalidate_caches()
    return folder


def test_a_release_without_weights_is_named(package):
    with pytest.raises(FileNotFoundError, match=r"eqx_hsc_ScoreNet32\.eqx is missing.*galaxygrad==0\.2\.1"):
        load_galaxies("hsc-32")


def test_an_altered_file_of_the_package_is_refused_by_name(package):
    _write(package / GALAXIES["hsc-32"].file, _arrays())
    with pytest.raises(
        ValueError, match=r"eqx_hsc_ScoreNet32\.eqx is truncated or altered: expected sha256 cb92"
    ):
        load_galaxies("hsc-32")


# The published weights


@published
@pytest.mark.parametrize("name", GALAXIES)
def test_published_networks_answer_as_their_own_package_does(name):
    network = load_galaxies(name)
    side = network.shape[1]
    assert network.info["name"] == name and network.shape == (1, side, side) and str(side) in name
    y = _image(side)
    with torch.no_grad():
        scores = [network.score(y, torch.tensor([t]))[0, 0] for t in (0.01, 3.0)]
    found = torch.stack([score[place] for score in scores for place in _pixels(side)])
    # float32 on both sides, the numbers up to 30: 1e-5 of the largest.
    largest = max(score.abs().max().item() for score in scores)
    torch.testing.assert_close(found, torch.tensor(ORACLE[name]), rtol=1e-5, atol=1e-6 * largest)


@published
def test_a_path_to_a_published_file_is_known_by_its_content(tmp_path):
    folder = importlib.util.find_spec("galaxygrad").submodule_search_locations[0]
    (tmp_path / "hub.bin").symlink_to(f"{folder}/{GALAXIES['ztf-32'].file}")
    network = load_galaxies(tmp_path / "hub.bin")
    assert network.info["name"] == "ztf-32"
