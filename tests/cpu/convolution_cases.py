"""Convolution steps drawn for tests, their answer in float64, and what rounding allows a kernel to differ from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from kernel_runner import run, step

from perwatt.cpu.catalogue import KERNELS
from perwatt.plan.algorithm import Algorithm, Step, Tile

UNIT = float(np.finfo(np.float32).eps) / 2  # one rounding


@dataclass(frozen=True)
class Case:
    """One FusedConv. `pads` in ONNX's order; `spare_blocks` lets every blocked tensor lie in a wider buffer."""

    channels: int
    outputs: int
    size: tuple[int, int]
    kernel: tuple[int, int] = (3, 3)
    pads: tuple[int, int, int, int] = (1, 1, 1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1
    images: int = 1
    residual: bool = False
    activation: tuple[str | None, float, float] = (None, 0.0, 0.0)
    layout: str = "blocked"
    lanes: int = 16
    threads: int = 1
    spare_blocks: int = 0

    def __str__(self) -> str:
        plain = replace(self, lanes=0)
        shown = {key: value for key, value in vars(plain).items() if value != getattr(_DEFAULT, key, None)}
        return " ".join(f"{key}={value}" for key, value in shown.items()).replace(", ", ",")

    @property
    def out_size(self) -> tuple[int, int]:
        def along(axis: int) -> int:
            reach = self.dilations[axis] * (self.kernel[axis] - 1) + 1
            return (self.size[axis] + self.pads[axis] + self.pads[axis + 2] - reach) // self.strides[axis] + 1

        return along(0), along(1)

    @property
    def depth(self) -> int:
        """Products in one sum."""
        return self.channels // self.groups * math.prod(self.kernel)

    @property
    def possible(self) -> bool:
        return min(self.out_size) >= 1

    def step(self, weights: np.ndarray, bias: np.ndarray | None) -> Step:
        shape, out = (self.images, self.channels, *self.size), (self.images, self.outputs, *self.out_size)
        inputs: list[tuple[str, Any] | None] = [("x", shape), ("w", weights.shape), None]
        constants = {"w": weights}
        if bias is not None:
            inputs[2], constants["b"] = ("b", bias.shape), bias
        if self.residual:
            inputs.append(("r", out))
        layouts = [self.layout, "plain", "plain", "blocked"][: len(inputs)]
        return step(
            "FusedConv", inputs, [out], lanes=self.lanes, threads=self.threads, layouts=[*layouts, "blocked"],
            constants=constants, spare_blocks=self.spare_blocks, kernel_shape=self.kernel, strides=self.strides,
            dilations=self.dilations, pads=self.pads, group=self.groups, activation=self.activation[0],
            activation_alpha=self.activation[1], activation_beta=self.activation[2], splits=None,
        )  # fmt: skip


_DEFAULT = Case(0, 0, (0, 0))


@dataclass(frozen=True)
class Problem:
    """A Case with numbers: its step, what to feed, the sum in float64 and the size of what was summed."""

    case: Case
    step: Step
    feeds: dict[str, np.ndarray]
    exact: np.ndarray
    magnitude: np.ndarray

    def algorithms(self) -> list[Algorithm]:
        """Return every algorithm of the catalogue that takes the step."""
        able = [a for a in KERNELS if self.step.operator in a.operators]
        return [a for a in able if a.accepts(self.step) is None]


def convolve(x: np.ndarray, weights: np.ndarray, case: Case) -> np.ndarray:
    """Return the convolution in float64, by its definition: one window element after the other."""
    top, left, bottom, right = case.pads
    framed = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    height, width = case.out_size
    each, made = case.channels // case.groups, case.outputs // case.groups
    total = np.zeros((case.images, case.outputs, height, width))
    for i in range(case.kernel[0]):
        for j in range(case.kernel[1]):
            y, z = i * case.dilations[0], j * case.dilations[1]
            rows = slice(y, y + (height - 1) * case.strides[0] + 1, case.strides[0])
            columns = slice(z, z + (width - 1) * case.strides[1] + 1, case.strides[1])
            seen = framed[:, :, rows, columns]
            for g in range(case.groups):
                taken = weights[g * made : (g + 1) * made, :, i, j].astype(np.float64)
                part = np.einsum("nchw,kc->nkhw", seen[:, g * each : (g + 1) * each], taken, optimize=True)
                total[:, g * made : (g + 1) * made] += part
    return total


def problem(case: Case, seed: int = 0, bias: bool = True) -> Problem:
    """Return a Case with normal numbers."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((case.images, case.channels, *case.size)).astype(np.float32)
    weights = random.standard_normal((case.outputs, case.channels // case.groups, *case.kernel))
    weights = (weights / math.sqrt(case.depth)).astype(np.float32)
    shift = random.standard_normal(case.outputs).astype(np.float32) if bias else None
    feeds = {"x": x}
    exact, magnitude = convolve(x, weights, case), convolve(abs(x), abs(weights), case)
    if shift is not None:
        exact, magnitude = exact + shift[:, None, None], magnitude + abs(shift[:, None, None])
    if case.residual:
        feeds["r"] = random.standard_normal(exact.shape).astype(np.float32)
        exact, magnitude = exact + feeds["r"], magnitude + abs(feeds["r"])
    return Problem(case, case.step(weights, shift), feeds, exact, magnitude)


def activated(exact: np.ndarray, activation: tuple[str | None, float, float]) -> np.ndarray:
    """Return ONNX's activation in float64."""
    name, alpha, beta = activation
    alpha, beta = float(np.float32(alpha)), float(np.float32(beta))
    with np.errstate(all="ignore"):
        match name:
            case None:
                return exact
            case "Relu":
                return np.where(exact < 0, 0.0, exact)
            case "Clip":
                return np.clip(exact, alpha, beta)
            case "LeakyRelu":
                return np.where(exact < 0, exact * alpha, exact)
            case "Elu":
                return np.where(exact < 0, np.expm1(exact) * alpha, exact)
            case "Sigmoid":
                return 1 / (1 + np.exp(-exact))
            case "Tanh":
                return np.tanh(exact)
            case "Silu":
                return exact / (1 + np.exp(-exact))
            case "HardSigmoid":
                return np.clip(exact * alpha + beta, 0, 1)
            case "HardSwish":
                return exact * np.clip(exact / 6 + 0.5, 0, 1)
    raise KeyError(name)


def allowed(given: Problem) -> np.ndarray:
    """Return how far one rounding per term can carry a sum, after the activation (none is steeper than 1.5).

    The bound for any order of n terms is n·u·Σ|terms|; errors of either sign grow like √n, of which 2 are allowed.
    """
    terms = given.case.depth + 2
    name = given.case.activation[0]
    extra = 0.0 if name in (None, "Relu", "Clip", "LeakyRelu") else 8.0
    return UNIT * given.magnitude * (1.5 * min(terms, 2 * math.sqrt(terms)) + extra) + 1e-30


def some_tiles(algorithm: Algorithm, s: Step, random: np.random.Generator, most: int = 3) -> list[Tile]:
    """Return the first and the last tile that an algorithm offers, and some between."""
    tiles = list(algorithm.tiles(s))
    assert tiles, f"{algorithm.name} accepts the step but offers no tile"
    assert all(algorithm.seconds(s, tile) > 0 for tile in tiles)
    picked = [tiles[0], tiles[-1], *(tiles[int(i)] for i in random.integers(len(tiles), size=max(0, most - 2)))][:most]
    return [tile for i, tile in enumerate(picked) if tile not in picked[:i]]


def errors(given: Problem, algorithm: Algorithm, tile: Tile | None = None) -> np.ndarray:
    """Return a kernel's result minus the exact one."""
    got = run(algorithm, given.step, given.feeds, tile)[0].astype(np.float64)
    return got - activated(given.exact, given.case.activation)


def check(given: Problem, algorithm: Algorithm, tiles: Sequence[Tile], transformed: float | None = None) -> None:
    """Assert that a kernel's result is as near to the exact one as rounding allows.

    What a transform rounds, it rounds for a tile as a whole: `transformed` times the largest tolerance is allowed then.
    """
    tolerance = allowed(given) if transformed is None else transformed * allowed(given).max()
    for tile in tiles:
        excess = abs(errors(given, algorithm, tile)) / tolerance
        worst = np.unravel_index(int(np.argmax(np.nan_to_num(excess, nan=np.inf))), excess.shape)
        assert excess[worst] <= 1, f"{algorithm.name} {dict(tile)}: {excess[worst]:.1f} times the tolerance at {worst}"
