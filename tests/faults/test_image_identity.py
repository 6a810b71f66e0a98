"""A folder is recognised by the content of what filled it: another array, setting or code is refused by name."""

import functools
import json
import threading

import numpy as np
import pytest
import torch

from entropic import edm_sigmas
from entropic.images.data import to_uint8
from entropic.images.generate import generate
from entropic.images.networks.small import load_network
from entropic.solvers import sample_ddim, sample_heun

SIGMAS = edm_sigmas(2, 0.01, 20.0)


class Guided(torch.nn.Module):
    """A network whose answer hangs on an attribute, on a buffer that is not saved, and on what a function holds."""

    shape, num_classes, config = (1, 4, 4), 0, {}

    def __init__(self, scale=1.0, table=0.0, extra=None):
        super().__init__()
        self.scale = scale
        self.register_buffer("table", torch.full((2000,), table), persistent=False)
        self.extra = extra
        self.eval()

    def forward(self, x, sigma, label=None):
        return self.scale * x / (1 + sigma**2) + self.table.mean()


def projected(images, matrix, gain=1.0):
    """Features that are linear in the images."""
    return gain * images.flatten(1).double() @ torch.as_tensor(matrix).double()


class Decoder:
    def __init__(self, gain):
        self.gain = gain

    def decode(self, state):
        return to_uint8(self.gain * state)

    __call__ = decode


MATRIX = torch.eye(16)[:, :2].repeat(1, 700)  # torch shortens what it prints of it
OTHER = MATRIX.clone()
OTHER[8, 700] = 1e-3
START = {"network": Guided(), "sigmas": SIGMAS, "seeds": range(3)}


def _features(function, *words, **options):
    return {"features": {"f": functools.partial(function, *words, **options)}}


CHANGES = {
    "attribute": ("network", {}, {"network": Guided(2.0)}),
    "buffer": ("network", {}, {"network": Guided(table=1e-7)}),
    "object": ("network", {}, {"network": Guided(extra=Decoder(1.0))}),
    "matrix": ("features", _features(projected, matrix=MATRIX), _features(projected, matrix=OTHER)),
    "array": (
        "features",
        _features(projected, matrix=MATRIX.numpy()),
        _features(projected, matrix=OTHER.numpy()),
    ),
    "digits": (
        "features",
        _features(projected, matrix=MATRIX, gain=torch.tensor(1.00001)),
        _features(projected, matrix=MATRIX, gain=torch.tensor(1.00002)),
    ),
    "method": ("decode", {"decode": Decoder(1.0).decode}, {"decode": Decoder(1.1).decode}),
    "instance": ("decode", {"decode": Decoder(1.0)}, {"decode": Decoder(1.1)}),
    "lambda": ("decode", {"decode": lambda x: to_uint8(x)}, {"decode": lambda x: to_uint8(-x)}),
    "sampler": (
        "sampler",
        {"sampler": functools.partial(sample_heun, s_noise=1.0)},
        {"sampler": functools.partial(sample_heun, s_noise=1.0000001)},
    ),
    "solver": ("sampler", {"sampler": sample_heun}, {"sampler": sample_ddim}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_content_is_refused(change, tmp_path):
    name, first, second = CHANGES[change]
    made = generate(**START | first, out=tmp_path)
    again = generate(**START | first, out=tmp_path)
    assert torch.equal(made.images, again.images)
    with pytest.raises(ValueError, match=f"^{name} = .*was made with"):
        generate(**START | second, out=tmp_path)


def test_equal_content_is_recognised(tmp_path):
    """Other objects of the same content, as another process makes them; a partial in another order of keywords."""

    def fill(**options):
        features = {"f": functools.partial(projected, **options)}
        return generate(
            Guided(), SIGMAS, range(3), decode=Decoder(1.0).decode, features=features, out=tmp_path
        )

    first = fill(matrix=MATRIX, gain=2.0)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert torch.equal(fill(gain=2.0, matrix=MATRIX.clone()).features["f"], first.features["f"])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files


def test_a_manifest_says_names_and_hashes(tmp_path):
    generate(**START, **_features(projected, matrix=MATRIX), out=tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text("utf-8"))
    assert manifest["sampler"] == "entropic.solvers.sample_ddim()"
    assert manifest["decode"] == "entropic.images.data.to_uint8()"
    assert manifest["features"]["f"].startswith(f"{__name__}.projected(matrix=tensor(")
    hashes = [*manifest["contents"]["features"].values(), manifest["network"]["sha256"]]
    hashes += [manifest["contents"][name] for name in ("sampler", "decode")]
    assert all(len(one) == 64 and set(one) <= set("0123456789abcdef") for one in hashes)
    assert (tmp_path / "manifest.json").stat().st_size < 5000


class Named:
    """What holds a lock has no content that can be told; its class may name it."""

    def __init__(self, name):
        self.name, self.lock = name, threading.Lock()

    def __repr__(self):
        return f"Named({self.name!r})"

    def __call__(self, state):
        return to_uint8(state)


def test_a_name_stands_for_what_cannot_be_told(tmp_path):
    generate(**START, decode=Named("a"), out=tmp_path)
    generate(**START, decode=Named("a"), out=tmp_path)
    with pytest.raises(ValueError, match=r"^decode = Named\('b'\)\(\), but .* was made with Named\('a'\)"):
        generate(**START, decode=Named("b"), out=tmp_path)


def test_a_compiled_or_moved_network_is_the_same(tmp_path):
    network = load_network("fashion-mnist")
    arguments = {"sigmas": [5.0, 0.0], "seeds": range(2), "out": tmp_path}
    made = generate(network, **arguments)
    network.compile(backend="eager")
    assert np.array_equal(generate(network, **arguments).images, made.images)
    twin = load_network("fashion-mnist").to(memory_format=torch.contiguous_format)
    assert torch.equal(generate(twin, **arguments).images, made.images)
