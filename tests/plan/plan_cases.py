"""What the tests of plans share: machines of several widths, and a memory that knows who wrote it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from small_graphs import Net

from perwatt.cpu.catalogue import KERNELS
from perwatt.graph import Graph
from perwatt.machine import Isa, Machine, this_machine
from perwatt.passes import apply
from perwatt.plan import Placement, Tensor, make, place

ISAS: dict[int, Isa] = {16: "avx512", 8: "avx2", 4: "portable"}


def machine(lanes: int = 16) -> Machine:
    """Return this machine as if its vectors had so many floats; nothing is run on it here."""
    return replace(this_machine(), isa=ISAS[lanes], vector_floats=lanes, l2_bytes=1 << 20)


def graph_of(write: Callable[[Net], Sequence[str]], batch: int = 1) -> Graph:
    net = Net(batch)
    return apply(net.graph(*write(net)))


def place_net(
    write: Callable[[Net], Sequence[str]], batch: int, lanes: int = 16, threads: int = 2, images: Sequence[int] = ()
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

    A number belongs to the tensor that owns the buffer (views write for it), and, where the buffer holds a part of the
    batch, to its image.
    """
    plan = make("net", placement, KERNELS)
    lanes = plan.steps[0].step.lanes
    arena = np.full(plan.arena_floats, -1)
    callers = {name: np.full(size, -1) for name, size in placement.buffer_floats.items() if name not in plan.buffers}
    owners = {name: number for number, name in enumerate(placement.buffer_floats)}
    for name in placement.inputs:
        if name in callers:
            callers[name][:] = owners[name] * 1000

    def cells(tensor: Tensor, first_image: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        where = placement.places[tensor.name]
        found = where.start(first_image) + addresses(tensor, lanes)
        assert found.min() >= 0
        assert found.max() < placement.buffer_floats[where.buffer], f"{tensor.name} leaves the buffer of {where.buffer}"
        token = np.full(len(found), owners[where.buffer] * 1000)
        if where.images < placement.batch:
            token += first_image + np.arange(len(found)) // (len(found) // tensor.shape[0])
        if where.buffer in plan.buffers:
            return arena, plan.buffers[where.buffer] + found, token
        return callers[where.buffer], found, token

    for first_image, position in placement.sequence():
        step = placement.steps[position]
        held = []
        for tensor in step.inputs:
            if tensor is not None and tensor.name not in step.constants:
                memory, found, token = cells(tensor, first_image)
                assert (memory[found] == token).all(), f"{step.name} reads {tensor.name}, which is not there"
                held.append((id(memory), found))
        for tensor in step.outputs:
            memory, found, token = cells(tensor, first_image)
            for other, read in held:
                apart = other != id(memory) or read.max() < found.min() or found.max() < read.min()
                assert apart or not np.isin(read, found).any(), f"{step.name} writes its own input"
            memory[found] = token
    for name in placement.outputs:
        where = placement.places[name]
        assert where.buffer == name, f"the output {name} lies in {where.buffer}"
        assert (callers[name] == owners[name] * 1000).all(), f"the output {name} is not written"
    assert len(set(placement.outputs)) == len(placement.outputs)
