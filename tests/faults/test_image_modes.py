"""Torch's default type, default device, gradient mode and inference mode have no influence, bit for bit."""

import dataclasses

import pytest
import torch

from entropic import edm_sigmas
from entropic.images import data
from entropic.images.generate import generate
from entropic.images.networks.classifier import FashionClassifier, accuracy, load_classifier, train_classifier
from entropic.images.networks.small import SmallUNet, load_network, save_network
from entropic.images.train import train
from entropic.solvers import sample_ddim_stochastic, sample_heun
from tests.images.test_train import TINY, noise_images
from tests.modes import ON_A_DEVICE as MODES

IMAGES = noise_images()


def _state(network):
    return list(network.state_dict().values())


def _embedded():
    network = load_network("fashion-mnist")
    x = torch.linspace(-3, 3, 2 * 784, dtype=torch.float32, device="cpu").reshape(2, 1, 28, 28)
    label = torch.tensor([1, 7], device="cpu")
    answers = [network(x.to(kind), 2.0, label) for kind in (torch.float32, torch.float64, torch.bfloat16)]
    return [*_state(network), *answers]


def _generated():
    network = load_network("fashion-mnist")
    made = [
        generate(network, [10.0, 1.0, 0.1, 0.0], range(3), sampler=sampler, output="float32")
        for sampler in (sample_heun, sample_ddim_stochastic)
    ]
    return [tensor for one in made for tensor in (one.images, one.labels)]


def _trained(folder):
    recipe = dataclasses.replace(TINY, steps=4, save_every=2)
    return _state(train(recipe, folder, *IMAGES, device="cpu", progress=False))


def _classifier():
    images, labels = data.fashion_mnist("test")
    mine = train_classifier(images[:200], labels[:200], epochs=1, batch=100)
    shares = [accuracy(one, images[:200], labels[:200]) for one in (load_classifier(), mine)]
    return [*_state(mine), torch.tensor(shares, dtype=torch.float64, device="cpu")]


def _pixels():
    images, labels, _ = data.load_images("fashion-mnist", "test")
    return [images, labels, data.to_pixels(images), data.to_uint8(data.to_pixels(images[:9], torch.float64))]


WORKS = {"embedded": _embedded, "generated": _generated, "classifier": _classifier, "pixels": _pixels}


@pytest.fixture(name="plain", scope="module")
def _plain(tmp_path_factory):
    return {"trained": _trained(tmp_path_factory.mktemp("plain"))} | {k: work() for k, work in WORKS.items()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("work", ["trained", *WORKS])
def test_a_mode_changes_no_bit(plain, work, mode, tmp_path):
    with MODES[mode]():
        found = _trained(tmp_path) if work == "trained" else WORKS[work]()
    assert [one.dtype for one in found] == [one.dtype for one in plain[work]]
    assert all(map(torch.equal, found, plain[work]))


@pytest.mark.parametrize("mode", ["float64", "bfloat16"])
def test_new_networks_are_float32(mode):
    def draw():
        torch.manual_seed(0)
        return [*_state(SmallUNet(**TINY.network)), *_state(FashionClassifier())]

    wanted = draw()
    with MODES[mode]():
        found = draw()
    assert all(one.dtype == two.dtype for one, two in zip(found, wanted, strict=True))
    assert all(map(torch.equal, found, wanted))


def test_what_was_loaded_in_inference_mode_can_be_used_after_it():
    with torch.inference_mode():
        network, classifier = load_network("fashion-mnist"), load_classifier()
        images = data.load_images("fashion-mnist", "test").images[:2]
        made = generate(network, edm_sigmas(2), [1, 2])
    made.images.add_(1)  # tensors of inference mode refuse this
    x = data.to_pixels(images).requires_grad_()
    (network(x, 1.0, torch.tensor([0, 1])).sum() + classifier(x).sum()).backward()
    assert x.grad.abs().sum() > 0


def test_a_network_is_built_on_the_device_that_is_asked_for(tmp_path):
    with torch.device("meta"):
        network = SmallUNet(**TINY.network)
    assert all(one.is_meta for one in _state(network))
    assert network(
        torch.zeros(2, 1, 8, 8, device="meta"), 1.0, torch.zeros(2, dtype=torch.int64, device="meta")
    ).is_meta
    with torch.random.fork_rng():
        save_network(tmp_path / "a.safetensors", SmallUNet(**TINY.network), {}, torch.float16)
    loaded = load_network(tmp_path / "a.safetensors")
    assert {one.dtype for one in _state(loaded)} == {torch.float32}
