"""What the tests of plans share: small graphs, machines of several widths, and a memory that knows who wrote it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from perwatt.cpu.catalogue import KERNELS
from perwatt.graph import Builder, Graph
from perwatt.machine import Isa, Machine, this_machine
from perwatt.passes import PASSES, apply
from perwatt.plan import Placement, Tensor, make, place

ISAS: dict[int, Isa] = {16: "avx512", 8: "avx2", 4: "portable"}
# Kernels write one output each, so the plan's graphs keep siblings apart.
ONE_OUTPUT = tuple(each for each in PASSES if each.name != "merge_siblings")


def machine(lanes: int = 16) -> Machine:
    """Return this machine as if its vectors had so many floats; nothing is run on it here."""
    return replace(this_machine(), isa=ISAS[lanes], vector_floats=lanes, l2_bytes=1 << 20)


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


def graph_of(write: Callable[[Net], Sequence[str]], batch: int = 1) -> Graph:
    net = Net(batch)
    return apply(net.graph(*write(net)), ONE_OUTPUT)


def place_net(
    write: Callable[[Net], Sequence[str]], batch: int, lanes: int = 16, threads: int = 2, images: int | None = None
) -> Placement:
    return place(graph_of(write, batch), machine(lanes), threads, images)


def addresses(tensor: Tensor, lanes: int) -> np.ndarray:
    """Return every float of a tensor, spare lanes among them, relative to its first."""
    if tensor.layout == "plain":
        return np.arange(math.prod(tensor.shape))
    n, channels = tensor.shape[:2]
    blocks, pixels = -(-channels // lanes), math.prod(tensor.shape[2:])
    by_image = lanes if len(tensor.shape) == 2 else tensor.image_stride
    grid = np.ix_(
        np.arange(n) * by_image, np.arange(blocks) * tensor.block_stride, np.arange(pixels) * lanes, range(lanes)
    )
    return sum(np.asarray(part) for part in grid).reshape(-1)  # type: ignore[union-attr]


def check_memory(placement: Placement) -> None:
    """Walk the steps over a memory that remembers whose numbers it holds, and assert that nobody reads another's.

    A number belongs to the tensor that owns the buffer (views write for it), and, where every repeat of the imagewise
    part begins anew, to that repeat.
    """
    plan = make("net", placement, KERNELS)
    lanes = plan.steps[0].step.lanes
    arena = np.full(plan.arena_floats, -1)
    callers = {name: np.full(size, -1) for name, size in placement.buffer_floats.items() if name not in plan.buffers}
    owners = {name: number for number, name in enumerate(placement.buffer_floats)}
    for name in placement.inputs:
        if name in callers:
            callers[name][:] = owners[name] * 1000

    def cells(tensor: Tensor, repeat: int) -> tuple[np.ndarray, np.ndarray, int]:
        where = placement.places[tensor.name]
        start = where.offset + repeat * placement.images * where.image_floats
        found = start + addresses(tensor, lanes)
        assert found.min() >= 0
        assert found.max() < placement.buffer_floats[where.buffer], f"{tensor.name} leaves the buffer of {where.buffer}"
        token = owners[where.buffer] * 1000 + (repeat if where.image_floats == 0 else 0)
        if where.buffer in plan.buffers:
            return arena, plan.buffers[where.buffer] + found, token
        return callers[where.buffer], found, token

    first = placement.imagewise_steps
    order = [(repeat, step) for repeat in range(placement.repeats) for step in placement.steps[:first]]
    order += [(0, step) for step in placement.steps[first:]]
    for repeat, step in order:
        held = []
        for tensor in step.inputs:
            if tensor is not None and tensor.name not in step.constants:
                memory, found, token = cells(tensor, repeat)
                assert (memory[found] == token).all(), f"{step.name} reads {tensor.name}, which is not there"
                held.append((id(memory), found))
        for tensor in step.outputs:
            memory, found, token = cells(tensor, repeat)
            for other, read in held:
                apart = other != id(memory) or read.max() < found.min() or found.max() < read.min()
                assert apart or not np.isin(read, found).any(), f"{step.name} writes its own input"
            memory[found] = token
    for name in placement.outputs:
        where = placement.places[name]
        assert where.buffer == name, f"the output {name} lies in {where.buffer}"
        assert (callers[name] == owners[name] * 1000).all(), f"the output {name} is not written"
    assert len(set(placement.outputs)) == len(placement.outputs)
