"""Networks: the small U-Net that is trained here, the published ones, and what reads and writes weights."""

from entropic.images.networks.galaxies import load_galaxies
from entropic.images.networks.small import SmallUNet, load_network, save_network, training_log
from entropic.images.networks.snapshot import SnapshotError, load_snapshot

__all__ = [
    "SmallUNet",
    "SnapshotError",
    "load_galaxies",
    "load_network",
    "load_snapshot",
    "save_network",
    "training_log",
]
