"""Networks: the small U-Net that is trained here, and what reads and writes weights."""

from entropic.networks.small import SmallUNet, load_network, save_network, training_log

__all__ = ["SmallUNet", "load_network", "save_network", "training_log"]
