"""What plan and kernels agree on: a Step to be done, and Algorithms that say whether, how and how fast they do it.

An Algorithm is a record of functions, made in `cpu/`; plan never imports it but is handed a catalogue. What an
algorithm returns is symbolic: calls of kernels whose words name tensors, packed constants and scratch, so that a Plan
can be made, printed and compared without any machine code.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod, sqrt
from typing import Literal

import numpy as np

from perwatt.graph import Attribute
from perwatt.machine import Machine
from perwatt.plan.precision import FP32_ONLY, Allowance, Element

# blocked: [image][C/V][H][W][V], and for two dimensions [C/V][image][V]; V floats to a vector register, the channels of
# the last block filled up with finite values. plain: row-major, as ONNX has it.
Layout = Literal["blocked", "plain"]
Tile = Mapping[str, int]


@dataclass(frozen=True)
class Tensor:
    """One operand of a step as kernels see it. Strides count floats and matter for the blocked layout only.

    `element` is how numbers are stored; of halves two count as one float in strides, so V of them as V/2. In FP32 a
    blocked tensor of shape (N, C, H, W) has element (n, c, h, w) at
    n·image_stride + (c // V)·block_stride + (h·W + w)·V + c % V, one of shape (N, C) has (n, c) at
    (c // V)·block_stride + n·V + c % V. A plain tensor is contiguous.
    """

    name: str
    shape: tuple[int, ...]
    layout: Layout
    image_stride: int = 0
    block_stride: int = 0
    element: Element = "fp32"


@dataclass(frozen=True)
class Step:
    """One operation of a plan. An input that is None is an optional one left out; `constants` holds those known now.

    `allowed` says what the step may use besides FP32.
    """

    name: str
    operator: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    attributes: Mapping[str, Attribute]
    constants: Mapping[str, np.ndarray]
    machine: Machine
    threads: int
    allowed: Allowance = FP32_ONLY

    @property
    def lanes(self) -> int:
        """V: floats in one vector register."""
        return self.machine.vector_floats

    @property
    def in_halves(self) -> bool:
        """Whether some tensor of the step is stored in FP16 or BF16."""
        return any(t is not None and t.element != "fp32" for t in (*self.inputs, *self.outputs))

    def constant(self, position: int) -> np.ndarray | None:
        """Return input `position` when its value is known, else None."""
        tensor = self.inputs[position] if position < len(self.inputs) else None
        return None if tensor is None else self.constants.get(tensor.name)


@dataclass(frozen=True)
class Operand:
    """A word: the address of a tensor of the step."""

    name: str


@dataclass(frozen=True)
class Packed:
    """A word: the address of an array made once, such as packed weights or a table of offsets.

    Words of one step with the same label share one array.
    """

    label: str
    make: Callable[[], np.ndarray] = field(compare=False)


@dataclass(frozen=True)
class Scratch:
    """A word: an address in the step's scratch memory, which holds nothing when the step begins."""

    offset_bytes: int = 0


@dataclass(frozen=True)
class Places:
    """A word: the address of a table of (address, floats from image to image), a pair for each block of V channels.

    The blocks of several blocked tensors, one tensor after the other: what a kernel with several outputs writes to.
    """

    names: tuple[str, ...]


Word = int | Operand | Packed | Scratch | Places


@dataclass(frozen=True)
class Call:
    """One kernel call on all threads. `source` writes the IR of the module that exports `function`.

    Two calls with the same function name are taken to be the same code: the name holds all it is specialised on.
    `module` names a module that exports several functions; None: it is named like its only function.
    """

    function: str
    source: Callable[[], str] = field(compare=False)
    words: tuple[Word, ...]
    module: str | None = None


# The length at which the usual kernels for products split their sums.
USUAL_RUN = 192


def _no_scratch(step: Step, tile: Tile) -> int:
    return 0


def direct_error(step: Step, run: int = 512) -> float:
    """Return the expected error of a dense step done directly in FP32: RMS of the error over RMS of the result.

    Grows with the root of the reduction length (measured: 1.5e-8 of it), up to the length `run` at which sums split.
    Steps without products: 0.
    """
    return 1.5e-8 * sqrt(min(_products(step), run))


def _products(step: Step) -> int:
    """Return how many products a result of a dense step sums, 0 of other steps."""
    weights = step.inputs[1] if len(step.inputs) > 1 else None
    if weights is not None and step.operator in ("FusedConv", "FusedGemm"):
        return prod(weights.shape[1:])
    strides, groups = step.attributes.get("strides"), step.attributes.get("group")
    if weights is not None and step.operator == "ConvTranspose" and isinstance(strides, tuple):
        assert isinstance(groups, int)
        return -(-prod(weights.shape) // weights.shape[1] // groups // prod(int(s) for s in strides))
    return 0


def allowed_error(step: Step) -> float:
    """Return the error expected of usual kernels that do a step directly in the coarsest precision it may use."""
    direct = direct_error(step, USUAL_RUN)
    return sqrt(direct**2 + step.allowed.error**2) if direct else 0.0


@dataclass(frozen=True)
class Algorithm:
    """One way to do a step.

    accepts        None, or the reason why this algorithm cannot do the step
    tiles          the settings worth trying, best guess first
    seconds        estimated time of the step on the whole team
    calls          the kernel calls, in order, a barrier after each
    scratch_bytes  working memory needed while the step runs, on all threads together
    error          expected error of the result: RMS of the error over RMS of the result
    weights        how it stores the weights it packs
    arithmetic     what it computes products in
    halves         whether it reads and writes blocked tensors stored in FP16 and BF16 too
    """

    name: str
    operators: tuple[str, ...]
    accepts: Callable[[Step], str | None]
    tiles: Callable[[Step], Sequence[Tile]]
    seconds: Callable[[Step, Tile], float]
    calls: Callable[[Step, Tile], tuple[Call, ...]]
    scratch_bytes: Callable[[Step, Tile], int] = _no_scratch
    error: Callable[[Step], float] = direct_error
    weights: Element = "fp32"
    arithmetic: Element = "fp32"
    halves: bool = False
