"""Small networks that the tests of several rooms share: chains, modules of nested concats, residuals, views."""

import math
from collections.abc import Callable, Sequence

from perwatt.graph import Builder, Graph


class Net:
    """A graph being written down."""

    def __init__(self, batch: int = 1) -> None:
        self.builder, self.batch, self.count = Builder("net", seed=1), batch, 0

    def name(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def input(self, *shape: int) -> str:
        return self.builder.input(self.name(), (self.batch, *shape))

    def add(self, operator: str, *inputs: str, **attributes: object) -> str:
        made = self.builder.add(operator, inputs, **attributes)  # type: ignore[arg-type]
        assert isinstance(made, str)
        return made

    def weights(self, *shape: int) -> str:
        depth = math.sqrt(math.prod(shape[1:]))
        return self.builder.constant(self.name(), (self.builder.random.standard_normal(shape) / depth).astype("f4"))

    def conv(self, x: str, channels: int, kernel: int = 1, **attributes: object) -> str:
        weights = self.weights(channels, self.builder.shape(x)[1], kernel, kernel)
        return self.add("Conv", x, weights, pads=(kernel // 2,) * 4, **attributes)

    def dense(self, x: str, outputs: int) -> str:
        flat = self.add("Flatten", x, axis=1) if len(self.builder.shape(x)) > 2 else x
        return self.add("Gemm", flat, self.weights(self.builder.shape(flat)[1], outputs))

    def graph(self, *outputs: str) -> Graph:
        return self.builder.finish(outputs)


def chain(net: Net) -> Sequence[str]:
    x = net.input(3, 11, 9)
    for channels in (16, 33, 7, 48):
        x = net.add("Relu", net.conv(x, channels, 3))
    return [net.dense(x, 10)]


def modules(net: Net) -> Sequence[str]:
    """Concats of concats, with tails, parts read twice, and pools between."""
    x = net.conv(net.input(3, 12, 12), 32, 3)
    for last in (16, 21):
        inner = net.add("Concat", net.conv(x, 16), net.conv(net.conv(x, 8), 32, 3), axis=1)
        pool = net.add("MaxPool", x, kernel_shape=(3, 3), pads=(1, 1, 1, 1))
        x = net.add("Concat", net.conv(x, 48), inner, net.conv(inner, 16), net.conv(pool, last), axis=1)
    return [net.dense(net.add("GlobalAveragePool", x), 7)]


def residuals(net: Net) -> Sequence[str]:
    x = net.conv(net.input(16, 7, 7), 32)
    for _ in range(3):
        y = net.add("Relu", net.conv(x, 17, 3))
        x = net.add("Relu", net.add("Add", net.conv(y, 32), x))
    return [net.dense(x, 5)]


def views(net: Net) -> Sequence[str]:
    """Outputs that are parts of a concat, inputs, views of inputs, views of each other, and twice the same."""
    x = net.input(16, 6, 6)
    a, b = net.conv(x, 16), net.conv(x, 32)
    joined = net.add("Concat", a, b, axis=1)
    flat = net.add("Reshape", joined, shape=(net.batch, -1))
    again = net.add("Flatten", joined, axis=1)
    return [a, net.conv(joined, 5), joined, flat, again, net.add("Reshape", x, shape=(-1, 36)), net.add("Identity", b)]


def odd_concats(net: Net) -> Sequence[str]:
    """Concats that cannot be views: a tail in the middle, an input as a part, the same part twice."""
    x = net.input(16, 5, 5)
    a, b = net.conv(x, 7), net.conv(x, 16)
    first = net.add("Concat", a, b, axis=1)
    second = net.add("Concat", x, b, b, axis=1)
    return [net.conv(net.add("Concat", first, second, b, axis=1), 3)]


def perceptron(net: Net) -> Sequence[str]:
    return [net.dense(net.add("Relu", net.dense(net.input(33), 48)), 3)]


NETS: tuple[Callable[[Net], Sequence[str]], ...] = (chain, modules, residuals, views, odd_concats, perceptron)
