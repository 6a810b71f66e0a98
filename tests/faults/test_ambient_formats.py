"""Default dtype, default device, gradients, inference mode and autocast change no feature, distance or network."""

import functools

import pytest
import torch

from entropic.images import cost, metrics
from entropic.images.metrics import distance, expected_floor, extract, frechet_distance, moments, statistics
from entropic.images.networks import edm, edm2, vae
from entropic.images.networks.dinov2 import DINOv2, load_dinov2
from entropic.images.networks.snapshot import load_snapshot
from entropic.images.networks.vae import latents_to_vae, load_vae, to_uint8_vae
from tests.images.networks import snapshots as s
from tests.modes import ON_A_DEVICE, default_dtype

SURROUNDINGS = ON_A_DEVICE | {"autocast": lambda: torch.autocast("cpu", torch.bfloat16)}
ALL = pytest.mark.parametrize("name", SURROUNDINGS)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTROPIC_CACHE", str(tmp_path / "cache"))


IMAGES = torch.randint(0, 256, (3, 1, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.fixture(name="dinov2", scope="module")
def _dinov2(tmp_path_factory):
    network, g = DINOv2(1024, 1, 4), torch.Generator().manual_seed(0)
    state = {name: torch.randn(value.shape, generator=g) / 32 for name, value in network.state_dict().items()}
    path = tmp_path_factory.mktemp("dinov2") / "d.pth"
    torch.save(state, path)
    return path


@ALL
@pytest.mark.parametrize(
    "extractor",
    ["fashion-classifier", "efficientnet-lite0", "dinov2-vit-l-14-bicubic", "inception-v3-compat"],
)
def test_features(name, extractor, dinov2, inception, monkeypatch):
    if extractor == "inception-v3-compat":
        monkeypatch.setattr(metrics, "_INCEPTION_SHA256", metrics._sha256(inception))
    weights = {"dinov2-vit-l-14-bicubic": dinov2, "inception-v3-compat": inception}.get(extractor)
    wanted = _plain_features(extractor, weights)
    with SURROUNDINGS[name]():
        found = extract(IMAGES, extractor, weights=weights)
    assert found.dtype == torch.float64 and torch.equal(found, wanted)
    if name != "inference":
        assert not found.requires_grad and not found.is_inference()


@functools.cache
def _plain_features(extractor, weights):
    return extract(IMAGES, extractor, weights=weights)


@pytest.fixture(name="inception", scope="module")
def _inception(tmp_path_factory):
    metrics.fidelity()
    from torch_fidelity import FeatureExtractorInceptionV3 as Inception

    module = "torch_fidelity.feature_extractor_inceptionv3"
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.setattr(f"{module}.load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(Inception, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = Inception("inception-v3-compat", ["2048"])
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


@ALL
def test_distances(name):
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(30, 5, generator=g) for _ in range(2))
    directions = torch.eye(784, 3)

    def found():
        a, b = statistics(x.numpy()), moments(y.numpy())
        return [
            frechet_distance(*a[:2], *b),
            frechet_distance([0, 0], [[1, 0.1], [0.1, 1]], [0, 0.1], [[1, 0], [0, 1]]),
            distance(x, a),
            metrics.floor(x.numpy(), 10, 0, 2),
            expected_floor(a, 4),
            metrics.imposed_distance(IMAGES, directions, [0.1, 0.2, 0.3]),
        ]

    wanted = found()
    with SURROUNDINGS[name]():
        assert found() == wanted
    grown = x.clone().requires_grad_()
    assert distance(grown, y) == distance(x, y)


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
    pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("vae")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = vae.autoencoder_class()(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    network.save_pretrained(folder)
    return folder


@ALL
def test_the_vae(name, folder):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)) / 2
    wanted = load_vae(folder)
    kept = wanted.decode(latents), latents_to_vae(latents), to_uint8_vae(latents)
    with SURROUNDINGS[name]():
        loaded = load_vae(folder, device="cpu")
        assert repr(loaded) == repr(wanted)
        assert torch.equal(loaded.decode(latents), kept[0])
        assert torch.equal(latents_to_vae(latents), kept[1]) and torch.equal(to_uint8_vae(latents), kept[2])


@ALL
def test_loaded_networks(name, tmp_path, dinov2):
    kwargs = {
        "img_resolution": 8,
        "img_channels": 4,
        "label_dim": 3,
        "model_channels": 16,
        "channel_mult": [1, 2],
    }
    kwargs |= {"num_blocks": 1, "attn_resolutions": [4], "channels_per_head": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = edm2.Precond(**kwargs).half()
    path = tmp_path / "a.pkl"
    path.write_bytes(s.pickled(s.snapshot(network, kwargs)))
    wanted = load_snapshot(path, cache=tmp_path / "first").state_dict()
    other = load_dinov2(dinov2).state_dict()
    with SURROUNDINGS[name]():
        for _ in range(2):  # the pickle, then its conversion
            found = load_snapshot(path, cache=tmp_path / "second").state_dict()
            for key, value in wanted.items():
                assert found[key].dtype == value.dtype and torch.equal(found[key], value)
        found = load_dinov2(dinov2).state_dict()
        assert all(
            torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in other.items()
        )


@pytest.fixture(name="costs", scope="module")
def _costs():
    with torch.device("meta"):
        small = edm2.Precond(16, 4, 10, model_channels=32).eval()

    def found():
        return (
            cost.memory(small, 2),
            cost.parameters(cost.architecture("ImageNet-64", "EDM2-XS")),
            cost.memory(cost.architecture("CIFAR-10", "EDM-VP"), 1, torch.float32),
        )

    return found, found()


@ALL
def test_costs(name, costs):
    found, wanted = costs
    with SURROUNDINGS[name]():
        assert found() == wanted


def test_a_denoiser_looks_at_no_default():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = [
            edm2.Precond(16, 4, 10, model_channels=32).eval(),
            edm.EDMPrecond(16, 3, 10, model_channels=32, channel_mult=[2, 2], num_blocks=1).eval(),
            edm.VPPrecond(16, 3, 10, model_channels=32, channel_mult=[2, 2], num_blocks=1).eval(),
        ]
    label = torch.tensor([1, 2])
    for network in networks:
        x = torch.randn(2, *network.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            wanted = network(x, 0.7, label)
            for dtype in (torch.bfloat16, torch.float64):
                with default_dtype(dtype):
                    assert torch.equal(network(x, 0.7, label), wanted)
