"""The built-in networks, as builders that read like the papers they come from."""

from perwatt.networks.imagenet import labels
from perwatt.networks.network import NETWORKS, Network, build, sized
from perwatt.networks.weights import SEED

__all__ = ["NETWORKS", "SEED", "Network", "build", "labels", "sized"]
