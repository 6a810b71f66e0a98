"""A small Fashion-MNIST classifier whose features measure distances between sets of images.

`python -m entropic.images.networks.classifier --out PATH.safetensors` trains it again: minutes on one core.
"""

import argparse
import functools
from importlib import resources
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from entropic._check import check_scale, integer, positive
from entropic.images.data import check_labels, check_states, fashion_mnist
from entropic.images.networks.weights import load_module, save_weights

FEATURES = 96

# Parameters are float32, whatever torch's default is.
_Linear = functools.partial(nn.Linear, dtype=torch.float32)


class FashionClassifier(nn.Module):
    """Logits (N, 10) of grey images x (N, 1, 28, 28), float in [-1, 1]; `features(x)`: what they are linear in.

    Three 3x3 convolutions, each halving the side, and a linear layer; batch norm and a ramp after each.
    Images are taken to the type of the weights, float32. ValueError: x of another shape, not floating, not finite.
    """

    def __init__(self):
        super().__init__()
        widths = (1, 32, 64, FEATURES)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, bias=False, dtype=torch.float32) for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, dtype=torch.float32) for width in widths[1:])
        self.linear = _Linear(9 * FEATURES, FEATURES, bias=False)
        self.norm = nn.BatchNorm1d(FEATURES, dtype=torch.float32)
        self.logits = _Linear(FEATURES, 10)

    def features(self, x):
        """Penultimate features (N, 96), nonnegative."""
        x = check_states(x, (1, 28, 28)).to(self.linear.weight.dtype)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.relu(norm(F.max_pool2d(convolution(x), 2)))
        return F.relu(self.norm(self.linear(x.flatten(1))))

    def forward(self, x):
        return self.logits(self.features(x))


@torch.inference_mode(False)
@torch.enable_grad()
def train_classifier(images, labels, *, epochs=5, seed=0, batch=250, learning_rate=0.01, device="cpu"):
    """Train on images (N, 784), floats in [-1, 1], and labels (N,) int64; return the classifier in eval mode.

    AdamW under a one-cycle rate; N is cut to whole batches. One seed gives one network, bit for bit, on one
    thread of one kind of machine. ValueError: shapes, labels or numbers that do not fit.
    """
    epochs, batch = integer("epochs", epochs, 1), integer("batch", batch, 2)
    if images.ndim != 2 or images.shape[1] != 784 or len(images) < batch:
        raise ValueError(f"images have shape {tuple(images.shape)}; pass (N, 784), N >= {batch}")
    labels = check_labels(labels, len(images), 10).to(device)
    images = check_states(images.reshape(-1, 1, 28, 28), name="images").to(device, torch.float32)
    check_scale(images, "images")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        learning_rate = positive("learning_rate", learning_rate)
        network = FashionClassifier()
    network = network.to(device, memory_format=torch.channels_last).train()
    steps = len(images) // batch
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * steps)
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator, device="cpu")[: steps * batch].reshape(
            steps, batch
        )
        for rows in order.to(device):
            x = images[rows].contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(network(x), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    return network.eval()


@torch.inference_mode()
def accuracy(network, images, labels):
    """Share of images (N, 784), floats in [-1, 1], that `network` gives their label (N,) int64."""
    check_scale(images, "images")
    labels = check_labels(labels, len(images), 10)
    parts = images.float().reshape(-1, 1, 28, 28).split(500)
    found = torch.cat([network(part).argmax(1) for part in parts])
    return float((found == labels).double().mean())


def weights_path():
    """Path of the weights that the package carries."""
    return resources.files("entropic.images").joinpath("assets/fashion-classifier.safetensors")


def load_classifier(path=None):
    """The classifier of `path` (default: the package's own weights), in eval mode.

    ValueError: damaged weights or another network's, with the path. FileNotFoundError: one of the two files is
    missing.
    """

    def make(tensors, info):
        network = FashionClassifier()
        network.load_state_dict(tensors)
        return network.to(memory_format=torch.channels_last)  # 2.6 times faster on a CPU

    return load_module(path or weights_path(), make, "a FashionClassifier").eval()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="where the weights go, *.safetensors")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    network = train_classifier(
        *fashion_mnist("train", source="full"), epochs=arguments.epochs, seed=arguments.seed
    )
    info = {
        "network": "entropic.images.networks.classifier.FashionClassifier",
        "data": "Fashion-MNIST, 60,000 training images (Xiao, Rasul and Vollgraf 2017; MIT licence)",
        "test_accuracy": accuracy(network, *fashion_mnist("test", source="full")),
        "test_images": 10_000,
        "epochs": arguments.epochs,
        "seed": arguments.seed,
        "torch": torch.__version__,
    }
    sha256 = save_weights(arguments.out, network.state_dict(), info)
    print(f"{arguments.out}: test accuracy {info['test_accuracy']:.4f}, sha256 {sha256}")


if __name__ == "__main__":
    main()
