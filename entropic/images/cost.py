"""What a network costs before it is run: operations and memory, counted on tensors without data."""

import weakref
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from entropic import _check
from entropic.images.networks import edm, edm2
from entropic.images.networks.vae import autoencoder_class

__all__ = ["Memory", "architecture", "flops", "memory", "parameters", "vae_decoder"]


class Memory(NamedTuple):
    """Bytes that a call of a network needs: its weights, and the peak of everything alive at once, weights too."""

    weights: int
    peak: int


def architecture(dataset, network):
    """The published network of that name in the paper's tables, on the meta device: its sizes without its weights.

    ValueError: no such network. Sources: Karras et al. 2022, table 7; Karras et al. 2024, table 6.
    """
    sides = {"CIFAR-10": (32, 3), "FFHQ-64": (64, 3), "ImageNet-64": (64, 3), "ImageNet-512": (64, 4)}
    size = network.removeprefix("EDM2-").lower()
    with torch.device("meta"):
        if network == "EDM-VP" and dataset in ("CIFAR-10", "FFHQ-64"):
            mult = [2, 2, 2] if dataset == "CIFAR-10" else [1, 2, 2, 2]
            return edm.EDMPrecond(*sides[dataset], channel_mult=mult, augment_dim=9).float().eval()
        if network.startswith("EDM2-") and size in edm2.SIZES and dataset.startswith("ImageNet"):
            return edm2.Precond(*sides[dataset], 1000, model_channels=edm2.SIZES[size]).float().eval()
    raise ValueError(
        f"network = {network!r} on {dataset!r} is not published; see entropic.images.networks.published"
    )


def vae_decoder():
    """The decoder of Stability AI's VAE on the meta device: a function of latents (N, 4, H, W).

    ModuleNotFoundError: no diffusers. Source: Rombach et al. 2022, the f8 model.
    """
    with torch.device("meta"):
        network = autoencoder_class()(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[128, 256, 512, 512],
            layers_per_block=2,
            latent_channels=4,
        )
    return network.float().decode


def parameters(network):
    """How many numbers the network's parameters are."""
    return sum(tensor.numel() for tensor in network.parameters())


def flops(call, *shapes, dtype=torch.float32):
    """Floating-point operations of call(*tensors of these shapes), two for each multiply and add; on meta tensors.

    Counted: convolutions and matrix products, attention's included. `call` is a function or module on the meta device.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(*(torch.empty(shape, device="meta", dtype=dtype) for shape in shapes))
    return counter.get_total_flops()


def memory(network, batch, dtype=torch.float16):
    """The `Memory` of one call of an EDM or EDM2 network on the meta device, its U-Net in `dtype`; nothing is run.

    Counts tensors that are alive at the same time in a call without gradients, not what libraries take for
    themselves (workspaces, the CUDA context: up to about a gigabyte).
    """
    batch = _check.integer("batch", batch, 1)
    weights = sum(tensor.untyped_storage().nbytes() for tensor in network.state_dict().values())
    with torch.no_grad(), torch.device("meta"):
        x = torch.empty(batch, *network.shape, dtype=dtype)
        noise, classes = (
            torch.empty(shape, dtype=torch.float32) for shape in (batch, (batch, network.num_classes))
        )
        with _Alive() as alive:
            network.raw(x, noise, classes)
    return Memory(weights, weights + alive.peak)


class _Alive(TorchDispatchMode):
    """Counts the bytes of the storages that operations have made and that are still referred to."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.held = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)
        }
        found = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if torch.is_tensor(leaf):
                self._hold(leaf, given)
        self.peak = max(self.peak, self.now)
        return found

    def _hold(self, tensor, given):
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.held:
            if key in given:
                return  # a view of what was there before
            self.held[key] = [0, storage.nbytes()]
            self.now += storage.nbytes()
        self.held[key][0] += 1
        weakref.finalize(tensor, self._release, key)

    def _release(self, key):
        self.held[key][0] -= 1
        if self.held[key][0] == 0:
            self.now -= self.held.pop(key)[1]
