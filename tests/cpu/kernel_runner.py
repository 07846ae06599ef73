"""Run one Algorithm on arrays without a plan: guarded buffers, garbage in the spare lanes, a team played one by one."""

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from perwatt.cpu.claims import LINE_BYTES
from perwatt.cpu.jit import NativeCode, compile_modules
from perwatt.cpu.kernels.storage import from_bf16, packed
from perwatt.machine import Isa, Machine, this_machine
from perwatt.plan.algorithm import Algorithm, Operand, Packed, Places, Scratch, Step, Tensor, Tile
from perwatt.plan.precision import Allowance, Element

GUARD = 192  # floats before and behind every buffer
CANARY = -7.0e33
LANES: dict[int, Isa] = {16: "avx512", 8: "avx2", 4: "portable"}
_HERE = this_machine()
_code: dict[tuple[str, int], NativeCode] = {}


def machine(lanes: int) -> Machine:
    """Return this machine limited to vectors of `lanes` floats."""
    return replace(_HERE, isa=LANES[lanes], vector_floats=lanes)


def lanes_here() -> list[int]:
    """Return the vector widths that run on this machine."""
    return [lanes for lanes in LANES if lanes <= _HERE.vector_floats]


def each_width() -> list[Any]:
    """Return the vector widths as parameters of a test; all but the widest are slow tests."""
    widest, *narrower = lanes_here()
    return [widest, *(pytest.param(lanes, marks=pytest.mark.slow) for lanes in narrower)]


def tensor(name: str, shape: Sequence[int], layout: str, lanes: int, spare_blocks: int = 0) -> Tensor:
    """Return a tensor; `spare_blocks` makes a blocked one a view of a wider buffer."""
    shape = tuple(shape)
    if layout == "plain":
        return Tensor(name, shape, "plain")
    pixels = math.prod(shape[2:])
    if len(shape) == 2:
        return Tensor(name, shape, "blocked", lanes, shape[0] * lanes)
    blocks = -(-shape[1] // lanes) + spare_blocks
    return Tensor(name, shape, "blocked", blocks * pixels * lanes, pixels * lanes)


def _places(t: Tensor, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where each element lies, and where the spare lanes of the last block lie, in elements."""
    if t.layout == "plain":
        return np.arange(math.prod(t.shape)).reshape(t.shape), np.zeros(0, np.int64)
    n, channels = t.shape[:2]
    pixels = math.prod(t.shape[2:])
    padded = -(-channels // lanes) * lanes
    c = np.arange(padded)
    each = 1 if t.element == "fp32" else 2  # strides count words of four bytes
    by_image = lanes if len(t.shape) == 2 else t.image_stride * each
    place = (
        np.arange(n)[:, None, None] * by_image
        + ((c // lanes) * t.block_stride * each + c % lanes)[None, :, None]
        + (np.arange(pixels) * lanes)[None, None, :]
    )
    return place[:, :channels].reshape(t.shape), place[:, channels:].reshape(-1)


class Buffer:
    """Memory of one tensor between guards; everything that is not the tensor's holds the canary."""

    def __init__(self, t: Tensor, lanes: int, values: np.ndarray | None, garbage: float) -> None:
        self.places, self.spare = _places(t, lanes)
        size = int(max(self.places.max(initial=0), self.spare.max(initial=0))) + 1
        self.element = t.element
        self.memory = self._stored(np.full(size + 2 * GUARD, CANARY if t.element == "fp32" else -7.0e3, np.float32))
        self.own = np.zeros(self.memory.size, bool)
        self.own[GUARD + self.places.reshape(-1)] = True
        self.own[GUARD + self.spare] = True
        self.memory[self.own] = self._stored(np.float32([np.nan]))[0]
        if values is not None:
            self.memory[GUARD + self.places] = self._stored(values)
            self.memory[GUARD + self.spare] = self._stored(garbage * (-1.0) ** np.arange(self.spare.size))
        self.before = self.memory.copy()
        self.address = self.memory.ctypes.data + self.memory.itemsize * GUARD

    def _stored(self, values: np.ndarray) -> np.ndarray:
        return packed(np.asarray(values, np.float32), self.element).reshape(np.shape(values))

    def _loaded(self, memory: np.ndarray) -> np.ndarray:
        return from_bf16(memory) if self.element == "bf16" else memory.astype(np.float32)

    def values(self) -> np.ndarray:
        return self._loaded(self.memory[GUARD + self.places])

    def check(self, written: bool) -> None:
        kept = ~self.own if written else np.ones_like(self.own)
        whole = f"i{self.memory.itemsize}"
        same = np.array_equal(self.memory[kept].view(whole), self.before[kept].view(whole))
        assert same, "a kernel wrote outside its output"
        if written:
            assert np.isfinite(self._loaded(self.memory[GUARD + self.spare])).all(), "spare lanes must stay finite"


def step(
    operator: str,
    inputs: Sequence[tuple[str, Any] | None],
    outputs: Sequence[tuple[int, ...]],
    *,
    lanes: int = 16,
    threads: int = 1,
    layouts: str | Sequence[str] = "blocked",
    constants: Mapping[str, np.ndarray] | None = None,
    spare_blocks: int = 0,
    **attributes: Any,
) -> Step:
    """Return a Step: inputs are (name, shape), outputs shapes; `layouts` goes over inputs, then outputs."""
    count = len(inputs) + len(outputs)
    each = [layouts] * count if isinstance(layouts, str) else list(layouts)
    tensors = [
        None if item is None else tensor(item[0], item[1], layout, lanes, spare_blocks)
        for item, layout in zip(inputs, each, strict=False)
    ]
    made = [
        tensor(f"y{i}", shape, layout, lanes, spare_blocks)
        for i, (shape, layout) in enumerate(zip(outputs, each[len(inputs) :], strict=True))
    ]
    return Step("step", operator, tuple(tensors), tuple(made), attributes, constants or {}, machine(lanes), threads)


def in_halves(s: Step, allowed: Allowance, data: Element = "fp32", made: Element = "fp32") -> Step:
    """Return a step that may use more than FP32; its blocked inputs lie as `data`, its outputs as `made`."""

    def stored(t: Tensor | None, element: Element) -> Tensor | None:
        if t is None or t.layout == "plain" or element == "fp32":
            return t
        return replace(t, image_stride=t.image_stride // 2, block_stride=t.block_stride // 2, element=element)

    inputs = tuple(stored(t, data) for t in s.inputs)
    outputs = tuple(t for t in (stored(o, made) for o in s.outputs) if t is not None)
    return replace(s, allowed=allowed, inputs=inputs, outputs=outputs)


def run(
    algorithm: Algorithm, s: Step, feeds: Mapping[str, np.ndarray], tile: Tile | None = None, garbage: float = 977.0
) -> list[np.ndarray]:
    """Return the outputs; checks that nothing else was written and that scratch and inputs may hold anything."""
    assert s.operator in algorithm.operators
    reason = algorithm.accepts(s)
    assert reason is None, reason
    tile = algorithm.tiles(s)[0] if tile is None else tile
    assert algorithm.seconds(s, tile) > 0
    lanes = s.lanes
    buffers: dict[str, Buffer] = {}
    for item in s.inputs:
        if item is not None and item.name not in s.constants:
            buffers[item.name] = Buffer(item, lanes, feeds[item.name], garbage)
    for item in s.outputs:
        buffers[item.name] = Buffer(item, lanes, None, garbage)
    scratch_floats = -(-algorithm.scratch_bytes(s, tile) // 4)
    scratch = np.full(scratch_floats + 2 * GUARD, CANARY, np.float32)
    made: dict[str, np.ndarray] = {}

    def address(word: object) -> int:
        if isinstance(word, Operand):
            return buffers[word.name].address
        if isinstance(word, Packed):
            if word.label not in made:
                made[word.label] = np.ascontiguousarray(word.make())
                assert made[word.label].dtype in (np.float32, np.int64, np.float16, np.uint16), word.label
            return made[word.label].ctypes.data
        if isinstance(word, Places):
            rows = [
                (buffers[o.name].address + 4 * block * o.block_stride, o.image_stride)
                for o in s.outputs
                for block in range(-(-o.shape[1] // lanes))
            ]
            made["places"] = np.array(rows, np.int64)
            return made["places"].ctypes.data
        if isinstance(word, Scratch):
            assert word.offset_bytes <= 4 * scratch_floats
            return scratch.ctypes.data + 4 * GUARD + word.offset_bytes
        assert isinstance(word, int | np.integer)
        return int(word)

    calls = algorithm.calls(s, tile)
    missing = list({c.function: c for c in calls if (c.function, lanes) not in _code}.values())
    for call, code in zip(missing, compile_modules([c.source() for c in missing], s.machine), strict=True):
        _code[call.function, lanes] = code
    prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    claimed: list[np.ndarray] = []
    # Twice: the last thread comes first and takes what it can of all tasks; each takes its own run of them.
    for claiming in (True, False) if s.threads > 1 else (False,):
        scratch[GUARD : GUARD + scratch_floats] = np.nan
        for call in calls:
            words = np.array([address(word) for word in call.words], np.int64)
            kernel = prototype(_code[call.function, lanes].address(call.function))
            claims = np.zeros(s.threads * LINE_BYTES // 8, np.int64)
            for thread in reversed(range(s.threads)):
                kernel(words.ctypes.data, thread, s.threads, claims.ctypes.data if claiming else None)
        if claiming:
            claimed = [buffers[item.name].values() for item in s.outputs]
    for item, values in zip(s.outputs, claimed, strict=False):
        np.testing.assert_array_equal(values, buffers[item.name].values(), "who does a task does not matter")
    written = {item.name for item in s.outputs}
    for name, buffer in buffers.items():
        buffer.check(name in written)
    assert (scratch[:GUARD] == np.float32(CANARY)).all()
    assert (scratch[GUARD + scratch_floats :] == np.float32(CANARY)).all()
    return [buffers[item.name].values() for item in s.outputs]
