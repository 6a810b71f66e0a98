"""What computes the same has one digest; what changes the answer changes it; what cannot be told is refused."""

import functools
import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from entropic.identity import content_sha256

GAIN = 1.0


class Net(torch.nn.Module):
    """A module with everything that may decide its answer."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(3))
            self.linear.bias.zero_()
        self.register_buffer("hidden", torch.ones(3), persistent=False)
        self.guidance, self.names = 1.5, {"a", "b", "c"}

    def forward(self, x, sigma):
        return self.linear(x) * self.hidden * self.guidance


class Scaled:
    """An object that computes, with a part that is kept once it is known."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x, sigma):
        return x * self.factor

    def denoiser(self, x, sigma):
        return x * self.factor

    @functools.cached_property
    def square(self):
        return self.factor**2


class Slotted:
    __slots__ = ("factor",)

    def __init__(self, factor):
        self.factor = factor


def _scale(x, sigma, gain=1.0, *, shift=0.0):
    return x * gain + shift


def _closure(value):
    return lambda x, sigma: x * value


def _reads_global(x, sigma):
    return x * GAIN


def _changed(act):
    net = Net()
    with torch.no_grad():
        act(net)
    return net


BIG = torch.zeros(3000)
ALIKE = BIG.clone()
ALIKE[1500] = 1e-6  # beyond what print shows

DIFFERENT = {
    "weight": (Net(), _changed(lambda net: net.linear.weight[0, 0].add_(1e-7))),
    "non-persistent buffer": (Net(), _changed(lambda net: net.hidden[1].add_(1e-6))),
    "plain attribute": (Net(), _changed(lambda net: setattr(net, "guidance", 1.6))),
    "training mode": (Net(), Net().eval()),
    "hook": (Net(), _changed(lambda net: net.register_forward_hook(lambda m, x, y: 2 * y))),
    "dtype": (Net(), Net().double()),
    "submodule": (Net(), _changed(lambda net: setattr(net, "linear", torch.nn.Identity()))),
    "partial, long tensor": (functools.partial(_scale, gain=BIG), functools.partial(_scale, gain=ALIKE)),
    "partial, long array": (
        functools.partial(_scale, gain=BIG.numpy()),
        functools.partial(_scale, gain=ALIKE.numpy()),
    ),
    "partial, position": (functools.partial(_scale, 1.0), functools.partial(_scale, 2.0)),
    "partial, method": (
        functools.partial(Scaled(1.0).denoiser, 1),
        functools.partial(Scaled(2.0).denoiser, 1),
    ),
    "closure": (_closure(1.0), _closure(2.0)),
    "closure, tensor": (_closure(BIG), _closure(ALIKE)),
    "constant": (lambda x, sigma: x * 2.0, lambda x, sigma: x * 3.0),
    "name": (lambda x: torch.sin(x), lambda x: torch.cos(x)),
    "default": (lambda x, gain=1.0: x * gain, lambda x, gain=2.0: x * gain),
    "keyword default": (lambda x, *, gain=1.0: x * gain, lambda x, *, gain=2.0: x * gain),
    "object": (Scaled(1.0), Scaled(2.0)),
    "method of an object": (Scaled(1.0).denoiser, Scaled(2.0).denoiser),
    "slots": (Slotted(1.0), Slotted(2.0)),
    "built-in": (torch.sin, torch.cos),
    "ufunc": (np.sin, np.cos),
    "library function": (torch.nn.functional.relu, torch.nn.functional.gelu),
    "type of a number": (1, 1.0),
    "truth": (True, 1),
    "text and bytes": ("a", b"a"),
    "signed zero": (0.0, -0.0),
    "shape": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "no entries": (torch.zeros(0, 3), torch.zeros(3, 0)),
    "bits of a type": (torch.zeros(2, dtype=torch.int32), torch.zeros(2)),
    "bfloat16": (torch.ones(2, dtype=torch.bfloat16), torch.tensor([1, 1.0078125], dtype=torch.bfloat16)),
    "conjugate": (torch.ones(2) * (1 + 1j), (torch.ones(2) * (1 + 1j)).conj()),
    "order of a dict": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "nesting": ([[1], [2]], [[1, 2]]),
    "split of texts": (["ab", "c"], ["a", "bc"]),
    "names of fields": (
        np.zeros(2, [("a", "<i4"), ("b", "<i4")]),
        np.zeros(2, [("b", "<i4"), ("a", "<i4")]),
    ),
    "objects in an array": (np.array([1, "a"], object), np.array([1, "b"], object)),
    "stream": (np.random.default_rng(0), np.random.default_rng(1)),
    "seed": (torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)),
}


@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=DIFFERENT)
def test_whatever_changes_the_answer_changes_the_digest(pair):
    first, second = pair
    assert content_sha256(first) != content_sha256(second)


W = torch.linspace(0, 1, 6).reshape(2, 3)
ALIKE_PAIRS = {
    "two modules": (Net(), Net()),
    "two closures": (_closure(1.0), _closure(1.0)),
    "two objects": (Scaled(2.0), Scaled(2.0)),
    "order of keywords": (
        functools.partial(_scale, gain=1, shift=2),
        functools.partial(_scale, shift=2, gain=1),
    ),
    "order of a set": ({"a", "b", "c"}, {"c", "b", "a"}),
    "strides": (W, W.t().contiguous().t()),
    "gradient": (W, W.clone().requires_grad_()),
    "byte order": (np.arange(3.0), np.arange(3.0).astype(">f8")),
    "strided array": (np.arange(6.0)[::2], np.array([0.0, 2.0, 4.0])),
    "shared or copied": ([W, W], [W, W.clone()]),
    "torch.compile": (Net(), torch.compile(Net())),
}


@pytest.mark.parametrize("pair", ALIKE_PAIRS.values(), ids=ALIKE_PAIRS)
def test_what_computes_the_same_has_the_same_digest(pair):
    first, second = pair
    assert content_sha256(first) == content_sha256(second)


def test_a_global_that_a_function_reads_counts(monkeypatch):
    before = content_sha256(_reads_global), content_sha256(functools.partial(_reads_global, sigma=1))
    monkeypatch.setitem(globals(), "GAIN", 2.0)
    after = content_sha256(_reads_global), content_sha256(functools.partial(_reads_global, sigma=1))
    assert before[0] != after[0] and before[1] != after[1]


def test_a_global_inside_an_inner_function_or_a_method_counts(monkeypatch):
    def outer(x, sigma):
        return [GAIN * each for each in x]

    class Reads:
        def __call__(self, x, sigma):
            return _reads_global(x, sigma)

    values = outer, Reads(), functools.lru_cache(_reads_global), Reads().__call__
    before = [content_sha256(value) for value in values]
    monkeypatch.setitem(globals(), "GAIN", 2.0)
    assert all(old != content_sha256(value) for old, value in zip(before, values, strict=True))


def test_an_own_class_counts_by_its_code():
    def made(gain):
        source = f"class Own:\n    scale = {gain}\n    def __call__(self, x):\n        return x * {gain}\n"
        space = {"__name__": "own"}
        exec(source, space)
        return space["Own"]()

    assert content_sha256(made(1)) == content_sha256(made(1)) != content_sha256(made(2))


def test_what_follows_from_the_rest_does_not_count():
    one = Scaled(2.0)
    before = content_sha256(one)
    assert one.square == 4.0 and content_sha256(one) == before


def test_a_value_that_holds_itself():
    def nested(last):
        made = [1, last]
        made.append(made)
        return made

    assert content_sha256(nested(2)) == content_sha256(nested(2)) != content_sha256(nested(3))


def several():
    return [Net().eval(), _closure(1.0), _scale, Scaled(1), {"a", "b", "c"}, lambda x: x in {"a", "b", "c"}]


@pytest.mark.parametrize("hash_seed", ["1", pytest.param("0", marks=pytest.mark.verify)])
def test_every_process_finds_the_same(hash_seed):
    words = "from tests import test_identity as t; print(t.content_sha256(t.several()))"
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parents[1])}
    child = subprocess.run(
        [sys.executable, "-c", words], env=environment, check=True, capture_output=True, text=True
    )
    assert child.stdout.strip() == content_sha256(several())


def _lazily():
    yield 1


UNTOLD = {
    "lock": _closure(threading.Lock()),
    "generator": _closure(_lazily()),
    "file": _closure(sys.__stderr__),
    "meta tensor": torch.zeros(2, device="meta"),
    "sparse tensor": {"a": torch.eye(2).to_sparse()},
    "script": torch.jit.trace(torch.nn.Identity(), torch.zeros(1)),
}


@pytest.mark.parametrize("value", UNTOLD.values(), ids=UNTOLD)
def test_what_cannot_be_told_is_refused(value):
    with pytest.raises(ValueError, match=r"^denoiser.*(cannot be told)"):
        content_sha256(value, "denoiser")


def test_a_refusal_says_where():
    with pytest.raises(ValueError, match=r"denoiser .*<lambda>\(\) \.closure \['value'\] .*_thread\.lock"):
        content_sha256(_closure(threading.Lock()), "denoiser")


def test_too_deep_is_refused():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested too deeply"):
        content_sha256(deep)


def test_form():
    assert len(content_sha256(None)) == 64 == len(hashlib.sha256().hexdigest())
