"""Operations and memory counted against closed forms, and the published sizes."""

import pytest
import torch
from torch import nn

from entropic.images import cost
from entropic.images.networks import edm, edm2


def test_operations_of_a_convolution_and_of_attention():
    with torch.device("meta"):
        layer = nn.Conv2d(3, 8, 3, padding=1)
    assert cost.flops(layer, (2, 3, 16, 16)) == 2 * 2 * 8 * 3 * 9 * 16 * 16

    def attention(q, k):
        return nn.functional.scaled_dot_product_attention(q, k, k)

    assert cost.flops(attention, (1, 4, 10, 32), (1, 4, 10, 32)) == 2 * 2 * 4 * 10 * 10 * 32


class _Chain(nn.Module):
    """Keeps one state while two more are alive: at most 3 of them, or 2 where the first is not needed."""

    def __init__(self, keep):
        super().__init__()
        self.shape, self.num_classes, self.keep = (4, 8, 8), 0, keep
        self.weight = nn.Parameter(torch.zeros(10, device="meta"))

    def raw(self, x, noise, classes):
        first = x + 1
        y = first * 2
        if not self.keep:
            del first
            return y * 3
        y = y * 3
        return y + first


@pytest.mark.parametrize(("keep", "alive"), [(False, 2), (True, 3)])
def test_memory_is_what_lives_at_once(keep, alive):
    state = 5 * 4 * 8 * 8 * 2  # five images, float16
    found = cost.memory(_Chain(keep), 5)
    assert found.weights == 40
    assert found.peak == 40 + alive * state


def test_views_take_no_memory():
    class Views(_Chain):
        def raw(self, x, noise, classes):
            return (x * 2).flatten(1)[:, ::2].unsqueeze(0)

    assert cost.memory(Views(False), 5).peak == 40 + 5 * 4 * 8 * 8 * 2


def test_memory_grows_by_its_activations_only():
    with torch.device("meta"):
        network = edm2.Precond(16, 4, 10, model_channels=32).eval().half()
    one, two, four = (cost.memory(network, batch) for batch in (128, 256, 512))
    assert one.weights == sum(2 * tensor.numel() for tensor in network.state_dict().values())
    assert four.peak - two.peak == pytest.approx(2 * (two.peak - one.peak), rel=0.02)


def test_xxl_at_eight_images_fits_24_gb():
    network = cost.architecture("ImageNet-512", "EDM2-XXL")
    for dtype in (torch.float16, torch.float32):
        assert cost.memory(network.to(dtype), 8, dtype).peak < 24e9


def test_published_sizes():
    cifar, ffhq = (cost.architecture(name, "EDM-VP") for name in ("CIFAR-10", "FFHQ-64"))
    assert (cost.parameters(cifar), cost.parameters(ffhq)) == (55_733_891, 61_805_571)
    level = torch.ones((), device="meta")
    assert cost.flops(lambda x: cifar(x, level), (1, 3, 32, 32)) == pytest.approx(42.4e9, rel=2e-3)
    small = cost.architecture("ImageNet-64", "EDM2-S")
    assert isinstance(small, edm2.Precond) and small.shape == (3, 64, 64)
    assert isinstance(cifar, edm.EDMPrecond) and cifar.num_classes == 0
    for dataset, network in (("CIFAR-10", "EDM2-XS"), ("ImageNet-64", "EDM-VP"), ("ImageNet-64", "EDM2-Q")):
        with pytest.raises(ValueError, match=f"network = '{network}' on '{dataset}'"):
            cost.architecture(dataset, network)


def test_decoder_of_the_published_autoencoder():
    pytest.importorskip("diffusers")
    decode = cost.vae_decoder()
    assert cost.flops(decode, (1, 4, 64, 64)) == pytest.approx(2.5e12, rel=0.01)


def test_the_bench_runs_and_leaves_its_table(tmp_path, capsys, monkeypatch):
    from tests import bench_gpu

    monkeypatch.setenv("ENTROPIC_RUN", "{}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(nn.Module, "compile", lambda *words, **options: None)  # half a minute on a CPU
    with pytest.raises(SystemExit, match="not run here"):
        bench_gpu.main([])
    bench_gpu.main(["--tiny", "--batches", "1", "2", "--repeats", "1", "--out", str(tmp_path)])
    head, *rows = (tmp_path / "throughput.csv").read_text().splitlines()
    assert head.startswith("mode,batch,calls a second") and len(rows) == 4
    assert "share of peak" in capsys.readouterr().out
