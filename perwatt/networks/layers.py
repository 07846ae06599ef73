"""Layers: the words in which the papers' tables are written, over graph.Builder, with seeded or trained weights."""

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from perwatt.errors import InputError, NetworkError
from perwatt.graph.builder import Builder
from perwatt.graph.graph import Graph
from perwatt.networks.weights import Moments, biases, filters, generator, rectified

# The spread of a pixel around the mean pixel in photographs, on the scale 0..255.
PIXEL_DEVIATION = 65.0
# Logits of 1000 classes with this standard deviation give a top class near 0.1, not 0.001 and not 1.
LOGITS_SPREAD = 2.0
# What pooling does to the moments of photographs' activations behind a Relu, measured on the networks of this room: the
# largest of a window lies this many standard deviations above the mean and varies this much more, and an average over a
# whole map keeps this part of the variance (that between channels).
WINDOW_GAIN = 0.6
WINDOW_VARIANCE = 1.5
MAP_VARIANCE = 0.3


class Layers:
    """A network being written down, layer by layer; every method returns the name of the tensor it makes.

    A layer's node and output carry the layer's name; weights are `name.weight` and `name.bias` as in a training export.
    Weights depend on the seed and the layer's name only, never on the batch; where `trained` tensors are given, they
    are taken from there by these names (but for those in `drawn`), and NetworkError is raised when one is missing or
    has another shape.
    """

    def __init__(
        self, name: str, seed: int, trained: Mapping[str, np.ndarray] | None = None, drawn: Collection[str] = ()
    ) -> None:
        self.builder = Builder(name, seed=seed)
        self.seed = seed
        self.trained, self.drawn = trained, drawn
        self.moments: dict[str, Moments] = {}

    def input(self, batch: int, channels: int, size: int, scale: float = 1.0) -> str:
        """Declare the photographs `data` [batch, channels, size, size], pixels times `scale`. Raises InputError."""
        if batch < 1:
            raise InputError(
                f"batch: expected a whole number of at least 1, got {batch}; ask for one photograph or more"
            )
        self.builder.input("data", (batch, channels, size, size))
        return self._made("data", Moments(0.0, (PIXEL_DEVIATION * scale) ** 2))

    def conv(
        self,
        name: str,
        data: str,
        channels: int,
        kernel: int,
        *,
        stride: int = 1,
        pad: int | tuple[int, int] = 0,
        group: int = 1,
        bias: bool = True,
        spread: float = 1.0,
    ) -> str:
        """Add a square convolution whose outputs have the standard deviation `spread`; `pad` may be (begin, end)."""
        shape = (channels, self.channels(data) // group, kernel, kernel)
        # Pixels have no common mean left to take away; taking away each filter's would leave it blind to brightness.
        inputs = [data, self._filters(name, shape, data, spread, centred=data != "data")]
        if bias:
            inputs.append(self._biases(name, channels, spread))
        begin, end = pad if isinstance(pad, tuple) else (pad, pad)
        made = self._add(
            "Conv",
            inputs,
            name,
            kernel_shape=(kernel, kernel),
            strides=(stride, stride),
            pads=(begin, begin, end, end),
            group=group,
        )
        return self._made(made, Moments(0.0, spread**2))

    def linear(self, name: str, data: str, outputs: int, *, spread: float = 1.0) -> str:
        """Add a fully connected layer over [batch, inputs]."""
        weights = self._filters(name, (outputs, self.channels(data)), data, spread, centred=True)
        inputs = [data, weights, self._biases(name, outputs, spread)]
        return self._made(self._add("Gemm", inputs, name, transB=1), Moments(0.0, spread**2))

    def batch_normalization(self, name: str, data: str, *, spread: float = 1.0, epsilon: float = 1e-5) -> str:
        """Add a batch normalisation with statistics as a trained one holds: near its input's, not equal to them."""
        channels, before = self.channels(data), self.moments[data]
        drawn = generator(self.seed, name)
        deviation = before.variance**0.5
        parameters = {
            "weight": spread * drawn.uniform(0.8, 1.2, channels),
            "bias": spread * 0.1 * drawn.standard_normal(channels),
            "running_mean": before.mean + deviation * 0.1 * drawn.standard_normal(channels),
            # Photographs are smooth here and busy there: activations vary more than the normal ones that are expected.
            "running_var": before.variance * drawn.uniform(1.1, 1.6, channels),
        }
        constants = [
            self._constant(f"{name}.{key}", (channels,), lambda value=value: value.astype(np.float32))  # type: ignore[misc]
            for key, value in parameters.items()
        ]
        made = self._add("BatchNormalization", [data, *constants], name, epsilon=epsilon)
        return self._made(made, Moments(0.0, spread**2))

    def relu(self, name: str, data: str) -> str:
        """Add a Relu."""
        return self._made(self._add("Relu", [data], name), rectified(self.moments[data]))

    def relu6(self, name: str, data: str) -> str:
        """Add a Relu that stops at 6."""
        return self._made(self._add("Clip", [data], name, min=0.0, max=6.0), rectified(self.moments[data]))

    def lrn(self, name: str, data: str, size: int = 5, alpha: float = 1e-4, beta: float = 0.75) -> str:
        """Add a local response normalisation across `size` channels, x / (1 + alpha/size · sum of squares)^beta."""
        before = self.moments[data]
        divisor = (1.0 + alpha * (before.variance + before.mean**2)) ** beta
        made = self._add("LRN", [data], name, size=size, alpha=alpha, beta=beta, bias=1.0)
        return self._made(made, Moments(before.mean / divisor, before.variance / divisor**2))

    def max_pool(self, name: str, data: str, kernel: int, *, stride: int, pad: int = 0, ceil: bool = True) -> str:
        """Add a square max pooling; `ceil` keeps a last window that hangs over the edge, as Caffe does."""
        before = self.moments[data]
        made = self._add(
            "MaxPool",
            [data],
            name,
            kernel_shape=(kernel,) * 2,
            strides=(stride,) * 2,
            pads=(pad,) * 4,
            ceil_mode=int(ceil),
        )
        return self._made(
            made, Moments(before.mean + WINDOW_GAIN * before.variance**0.5, WINDOW_VARIANCE * before.variance)
        )

    def average_pool(self, name: str, data: str, kernel: int | None = None, *, stride: int = 1) -> str:
        """Add an average pooling over the whole map, or over windows of `kernel` where the network's file says so."""
        before = self.moments[data]
        if kernel is None:
            made = self._add("GlobalAveragePool", [data], name)
        else:
            made = self._add("AveragePool", [data], name, kernel_shape=(kernel,) * 2, strides=(stride,) * 2)
        return self._made(made, Moments(before.mean, MAP_VARIANCE * before.variance))

    def concat(self, name: str, parts: Sequence[str]) -> str:
        """Add a concatenation along the channels."""
        widths = [self.channels(part) for part in parts]
        total = sum(widths)
        known = [self.moments[part] for part in parts]
        mean = sum(width * part.mean for width, part in zip(widths, known, strict=True)) / total
        second = sum(w * (part.variance + part.mean**2) for w, part in zip(widths, known, strict=True)) / total
        return self._made(self._add("Concat", list(parts), name, axis=1), Moments(mean, second - mean**2))

    def add(self, name: str, left: str, right: str) -> str:
        """Add the sum of two tensors, taken as independent."""
        one, other = self.moments[left], self.moments[right]
        made = self._add("Add", [left, right], name)
        return self._made(made, Moments(one.mean + other.mean, one.variance + other.variance))

    def flatten(self, name: str, data: str) -> str:
        """Add a reshaping to [batch, everything else]."""
        return self._made(self._add("Flatten", [data], name, axis=1), self.moments[data])

    def dropout(self, name: str, data: str) -> str:
        """Add a Dropout, which does nothing at inference but stands in the published files."""
        return self._made(self._add("Dropout", [data], name), self.moments[data])

    def finish(self, logits: str, auxiliary: Mapping[str, str] = MappingProxyType({})) -> Graph:
        """Add the softmax `prob` [batch, classes] over `logits` and return the checked Graph.

        `auxiliary` names further outputs and the logits of each.
        """
        answers = {"prob": logits, **auxiliary}
        return self.builder.finish([self._add("Softmax", [data], name, axis=1) for name, data in answers.items()])

    def channels(self, data: str) -> int:
        """Return the second dimension of a tensor."""
        return self.builder.shape(data)[1]

    def size(self, data: str) -> int:
        """Return the height of a map, which is its width too."""
        return self.builder.shape(data)[2]

    def _filters(self, name: str, shape: tuple[int, ...], data: str, spread: float, centred: bool) -> str:
        key, before = f"{name}.weight", self.moments[data]
        return self._constant(key, shape, lambda: filters(self.seed, key, shape, before, spread, centred))

    def _biases(self, name: str, length: int, spread: float) -> str:
        key = f"{name}.bias"
        return self._constant(key, (length,), lambda: biases(self.seed, key, length, spread))

    def _constant(self, name: str, shape: tuple[int, ...], draw: Callable[[], np.ndarray]) -> str:
        if self.trained is None or name in self.drawn:
            return self.builder.constant(name, draw())
        tensor = self.trained.get(name)
        if tensor is None or tensor.shape != shape:
            got = "none of that name" if tensor is None else f"shape {tensor.shape}"
            raise NetworkError(
                f"trained weights: expected {name} of shape {shape}, got {got}; use the file made for this"
            )
        return self.builder.constant(name, tensor)

    def _add(self, operator: str, inputs: list[str], name: str, **attributes: int | float | tuple[int, ...]) -> str:
        made = self.builder.add(operator, inputs, name=name, outputs=1, **attributes)
        assert isinstance(made, str)
        return made

    def _made(self, name: str, moments: Moments) -> str:
        self.moments[name] = moments
        return name
