"""Fully connected layers in the blocked layout, also on maps that were flattened block by block."""

import math
from typing import Any

import numpy as np
import pytest
from convolution_cases import UNIT, activated, some_tiles
from kernel_runner import each_width, lanes_here, run, step

from perwatt.cpu.kernels.fully_connected import FULLY_CONNECTED
from perwatt.plan.algorithm import Step

Posed = tuple[Step, dict[str, np.ndarray], np.ndarray, np.ndarray]
WIDEST = lanes_here()[0]


def pose(
    images: int, depth: int | tuple[int, int, int], outputs: int, *, lanes: int, threads: int = 1,
    residual: bool = False, bias: bool = True, activation: tuple[str | None, float, float] = (None, 0.0, 0.0),
) -> Posed:  # fmt: skip
    """Return (step, feeds, sums in float64, what may be lost); `depth` (C, H, W) is a map that was flattened."""
    random = np.random.default_rng(3)
    flattened = depth if isinstance(depth, tuple) else None
    features = math.prod(depth) if isinstance(depth, tuple) else depth
    weights = (random.standard_normal((outputs, features)) / math.sqrt(features)).astype(np.float32)
    x = random.standard_normal((images, features)).astype(np.float32)
    feeds: dict[str, np.ndarray] = {"x": x}
    attributes: dict[str, Any] = {}
    if flattened is not None:
        channels, height, width = flattened
        blocks = -(-channels // lanes)
        spread = np.full((images, blocks * lanes, height * width), 55.0, np.float32)  # spare lanes may hold anything
        spread[:, :channels] = x.reshape(images, channels, -1)
        feeds["x"] = spread.reshape(images, blocks, lanes, -1).transpose(0, 1, 3, 2).reshape(images, -1)
        attributes["flattened"] = flattened
    exact = x.astype(np.float64) @ weights.T.astype(np.float64)
    size = abs(x).astype(np.float64) @ abs(weights).T.astype(np.float64)
    inputs: list[tuple[str, Any] | None] = [("x", feeds["x"].shape), ("w", weights.shape), None]
    constants = {"w": weights}
    if bias:
        constants["b"] = random.standard_normal(outputs).astype(np.float32)
        inputs[2] = ("b", (outputs,))
        exact, size = exact + constants["b"], size + abs(constants["b"])
    if residual:
        feeds["r"] = random.standard_normal((images, outputs)).astype(np.float32)
        inputs.append(("r", (images, outputs)))
        exact, size = exact + feeds["r"], size + abs(feeds["r"])
    s = step(
        "FusedGemm", inputs, [(images, outputs)], lanes=lanes, threads=threads, constants=constants,
        layouts=[*("blocked", "plain", "plain", "blocked")[: len(inputs)], "blocked"], activation=activation[0],
        activation_alpha=activation[1], activation_beta=activation[2], **attributes,
    )  # fmt: skip
    return s, feeds, activated(exact, activation), UNIT * size * (4 * math.sqrt(features) + 10)


CASES = [
    {"images": 1, "depth": 1, "outputs": 1},
    {"images": 1, "depth": 33, "outputs": 1000, "threads": 3, "activation": ("Relu", 0.0, 0.0)},
    {"images": 5, "depth": (3, 5, 7), "outputs": 40, "residual": True, "threads": 2},
    {"images": 48, "depth": 17, "outputs": 7, "bias": False, "threads": 5},
    {"images": 3, "depth": (33, 1, 2), "outputs": 16, "activation": ("Clip", -0.25, 1.5)},
    {"images": 1, "depth": (16, 6, 6), "outputs": 17, "residual": True, "threads": 8},
    {"images": 2, "depth": 4096, "outputs": 33, "threads": 2},
]


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64(case: dict[str, Any], lanes: int) -> None:
    s, feeds, wanted, allowed = pose(**case, lanes=lanes)
    assert FULLY_CONNECTED.accepts(s) is None
    for tile in some_tiles(FULLY_CONNECTED, s, np.random.default_rng(1), 2):
        got = run(FULLY_CONNECTED, s, feeds, tile)[0]
        assert (abs(got - wanted) <= allowed).all(), tile


def test_the_team_changes_nothing() -> None:
    results = []
    for threads in (1, 2, 3, 5, 64):
        s, feeds, _, _ = pose(7, 33, 100, lanes=WIDEST, threads=threads)
        tile = {"rows": 4, "columns": 2, "pixel_chunks": 1, "group_chunks": 4, "pixels_outside": 0}
        results.append(run(FULLY_CONNECTED, s, feeds, tile)[0])
    assert all(np.array_equal(result, results[0]) for result in results)


def test_long_sums_are_parted() -> None:
    """The error of a sum grows with the root of its longest run: 25088 terms in one go would exceed this twice."""
    s, feeds, wanted, _ = pose(2, 25088, 64, lanes=WIDEST)
    got = run(FULLY_CONNECTED, s, feeds)[0]
    error = np.sqrt(np.mean((got - wanted) ** 2) / np.mean(wanted**2))
    assert error < 16 * UNIT


def test_nan_stays_in_its_image() -> None:
    s, feeds, _, _ = pose(3, 21, 9, lanes=WIDEST)
    feeds["x"][1, 20] = np.nan
    got = run(FULLY_CONNECTED, s, feeds)[0]
    assert np.isnan(got[1]).all()
    assert np.isfinite(got[[0, 2]]).all()


def test_what_is_refused() -> None:
    s, _, _, _ = pose(1, 4, 5, lanes=WIDEST)
    assert FULLY_CONNECTED.accepts(Step(**{**vars(s), "constants": {}})) is not None
    plain = step("FusedGemm", [("x", (1, 4)), ("w", (5, 4))], [(1, 5)], layouts="plain", constants=dict(s.constants))
    assert FULLY_CONNECTED.accepts(plain) is not None
