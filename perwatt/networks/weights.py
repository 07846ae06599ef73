"""Seeded weights that keep every activation alive: drawn for the moments that the layer's input is expected to have.

The trained weights of the older networks are not on a package registry, so perwatt draws weights: the time of an
inference hardly depends on them. Its energy does somewhat, and they are test data too: activations that die or explode
save the energy of toggling bits or meet denormals, hide wrong kernels, and make every photograph look alike.

He initialisation (He et al., 2015, arXiv:1502.01852) keeps the second moment through Conv and Relu, but it drifts under
pooling, normalisation and residual adds, and the positive mean behind each Relu makes the answers for all photographs
more and more alike with depth. So the expected mean and variance of every tensor are carried along (`Moments`), weights
are scaled for them, and each filter is moved towards a zero sum so that the common mean is mostly ignored.
"""

import math
from dataclasses import dataclass

import numpy as np

SEED = 2015
# How much of a filter's mean is taken away. 1 makes the network chaotic (rounding errors grow from layer to layer as
# they do in no trained network), 0 makes the answers for all photographs alike.
CENTRING = 0.8


@dataclass(frozen=True)
class Moments:
    """The expected mean and variance of a tensor's elements, over channels, positions and photographs."""

    mean: float
    variance: float

    @property
    def power(self) -> float:
        """The second moment that reaches the next layer's sum once its filters are centred."""
        return self.variance + ((1.0 - CENTRING) * self.mean) ** 2


def rectified(before: Moments) -> Moments:
    """Return the moments behind Relu, of an input taken as normally distributed."""
    deviation = math.sqrt(before.variance)
    ratio = before.mean / deviation
    below = 0.5 * (1.0 + math.erf(ratio / math.sqrt(2.0)))
    density = math.exp(-0.5 * ratio * ratio) / math.sqrt(2.0 * math.pi)
    mean = before.mean * below + deviation * density
    second = (before.mean**2 + before.variance) * below + before.mean * deviation * density
    return Moments(mean, second - mean * mean)


def generator(seed: int, name: str) -> np.random.Generator:
    """Return the random numbers of one tensor, which depend on nothing but the seed and the tensor's name."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, *name.encode()])))


def filters(seed: int, name: str, shape: tuple[int, ...], before: Moments, spread: float, centred: bool) -> np.ndarray:
    """Draw weights [outputs, inputs per group, ...] that give outputs of standard deviation `spread`.

    `before` are the moments of the layer's input; a filter that is not centred meets an input without a common mean.
    """
    weights = generator(seed, name).standard_normal(shape, dtype=np.float32)
    rows = weights.reshape(shape[0], -1)
    power = before.power if centred else before.variance + before.mean**2
    if centred:
        rows -= np.float32(CENTRING) * rows.mean(axis=1, keepdims=True)
    rows *= np.float32(spread / math.sqrt(rows.shape[1] * power))
    return weights


def biases(seed: int, name: str, length: int, spread: float) -> np.ndarray:
    """Draw biases [length] small beside the layer's `spread`, yet not zero: an engine that drops them must show."""
    drawn = generator(seed, name).standard_normal(length, dtype=np.float32)
    return drawn * np.float32(0.1 * spread)
