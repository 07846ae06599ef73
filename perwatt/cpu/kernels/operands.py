"""What kernels know of a step: sizes and strides of blocked tensors, typed attributes, constants packed for them."""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from perwatt.cpu.ir import Module
from perwatt.cpu.kernels.storage import FP32, Stored, stored
from perwatt.plan.algorithm import Step, Tensor, Tile
from perwatt.plan.precision import ELEMENT_BYTES

# What two cores of today's machines move from and to caches and memory; only the order of magnitude matters here,
# because the kernels that are estimated with it have no rivals that move other bytes.
BYTES_PER_SECOND = 2e10
CALL_SECONDS = 1e-6
TASKS_PER_THREAD = 4


@dataclass(frozen=True)
class Blocked:
    """A blocked tensor in numbers: (image n, block b, pixel p) lies at n·image_stride + b·block_stride + p·V floats.

    Of halves two count as one float, so a pixel takes V/2.
    """

    images: int
    channels: int
    blocks: int
    height: int
    width: int
    image_stride: int
    block_stride: int

    @property
    def pixels(self) -> int:
        """Pixels of one channel of one image."""
        return self.height * self.width


def blocked(tensor: Tensor, lanes: int) -> Blocked:
    """Return the numbers of a blocked tensor: (N, C) has one pixel an image; only the last axis counts as width."""
    shape = tensor.shape
    blocks = -(-shape[1] // lanes)
    if len(shape) == 2:
        return Blocked(shape[0], shape[1], blocks, 1, 1, words(tensor, lanes), tensor.block_stride)
    height = math.prod(shape[2:-1])
    return Blocked(shape[0], shape[1], blocks, height, shape[-1], tensor.image_stride, tensor.block_stride)


def words(tensor: Tensor, lanes: int) -> int:
    """Return the floats' room that V numbers of a tensor take."""
    return lanes if tensor.element == "fp32" else lanes // 2


def dense(name: str, shape: tuple[int, ...], lanes: int) -> Tensor:
    """Return a blocked tensor that is no view of another: its parts lie one behind the other."""
    blocks, pixels = -(-shape[1] // lanes), math.prod(shape[2:])
    if len(shape) == 2:
        return Tensor(name, shape, "blocked", lanes, shape[0] * lanes)
    return Tensor(name, shape, "blocked", blocks * pixels * lanes, pixels * lanes)


def storage(step: Step) -> tuple[Stored, Stored]:
    """Return how the first input and the first output are stored."""
    source, target = data(step)
    return stored(source.element, step.machine), stored(target.element, step.machine)


def suffix(*kinds: Stored) -> str:
    """Return storage as part of a function's name: nothing where all is FP32."""
    return "" if all(kind == FP32 for kind in kinds) else "_" + "_to_".join(kind.label for kind in kinds)


def pack_channels(values: np.ndarray, lanes: int) -> np.ndarray:
    """Return numbers per channel [..., C] as float32 [..., C/V·V], filled up with zeros."""
    missing = -values.shape[-1] % lanes
    return np.pad(values.astype(np.float32), [(0, 0)] * (values.ndim - 1) + [(0, missing)])


def data(step: Step) -> tuple[Tensor, Tensor]:
    """Return the first input and the first output."""
    first = step.inputs[0]
    assert first is not None, f"{step.name}: the first input is never left out"
    return first, step.outputs[0]


def everything_is(step: Step, layout: str, but: tuple[int, ...] = ()) -> bool:
    """Return whether all outputs, and all inputs that are no constants and not among `but`, have this layout."""
    inputs = [
        tensor
        for position, tensor in enumerate(step.inputs)
        if tensor is not None and tensor.name not in step.constants and position not in but
    ]
    return all(tensor.layout == layout for tensor in (*inputs, *step.outputs))


def whole(step: Step, name: str) -> int:
    """Return an attribute that is one whole number; raises KeyError or TypeError when the step has no such number."""
    value = step.attributes[name]
    if not isinstance(value, int):
        raise TypeError(f"{step.operator} {step.name}: attribute {name} is {value!r}, no whole number")
    return value


def wholes(step: Step, name: str) -> tuple[int, ...]:
    """Return an attribute that is a tuple of whole numbers; raises KeyError or TypeError when there is none."""
    value = step.attributes[name]
    if not isinstance(value, tuple):
        raise TypeError(f"{step.operator} {step.name}: attribute {name} is {value!r}, no tuple of whole numbers")
    return tuple(int(item) for item in value)


def real(step: Step, name: str) -> float:
    """Return an attribute that is one real number; raises KeyError or TypeError when the step has no such number."""
    value = step.attributes[name]
    if not isinstance(value, int | float):
        raise TypeError(f"{step.operator} {step.name}: attribute {name} is {value!r}, no number")
    return float(value)


def reals(step: Step, name: str) -> tuple[float, ...]:
    """Return an attribute that is a tuple of real numbers; raises KeyError or TypeError when there is none."""
    value = step.attributes[name]
    if not isinstance(value, tuple):
        raise TypeError(f"{step.operator} {step.name}: attribute {name} is {value!r}, no tuple of numbers")
    return tuple(float(item) for item in value)


def bits(*numbers: float) -> str:
    """Return float32 numbers as text that may stand in a function's name and differs whenever they do."""
    return "_".join(struct.pack(">f", number).hex() for number in numbers)


def text(make: Callable[[], Module]) -> Callable[[], str]:
    """Return the function that writes a module's text, from the one that makes the module."""
    return lambda: str(make())


def chunks(step: Step, tasks: int, divisible: int) -> int:
    """Return into how many parts each of `tasks` must be split, at most `divisible`, so that all threads have work."""
    wanted = TASKS_PER_THREAD * step.threads
    if tasks >= wanted or tasks % step.threads == 0 or step.threads == 1:
        return 1
    return max(1, min(divisible, -(-wanted // max(tasks, 1))))


def one_tile(step: Step) -> tuple[Tile, ...]:
    """Return the one empty setting of an algorithm that has nothing to choose."""
    return ({},)


def traffic_seconds(step: Step, tile: Tile) -> float:
    """Estimate a step that is bound by the bytes it moves: every operand once."""
    tensors = [tensor for tensor in (*step.inputs, *step.outputs) if tensor is not None]
    total = sum(math.prod(tensor.shape) * ELEMENT_BYTES[tensor.element] for tensor in tensors)
    return CALL_SECONDS + total / BYTES_PER_SECOND
