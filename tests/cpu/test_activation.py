"""Activations at the end of a convolution: exact where ONNX is exact, a few roundings elsewhere, NaN and infinity."""

import numpy as np
import pytest
from convolution_cases import UNIT, Case, activated
from kernel_runner import each_width, run

from perwatt.cpu.kernels.activation import Activation
from perwatt.cpu.kernels.convolution import DIRECT
from perwatt.graph.fused_operators import ACTIVATIONS

# (name, alpha, beta), and the roundings its result may be off by; 0: exact. A number further off than that relative to
# itself may still be near relative to `size`, the largest number the formula adds up.
CASES = [
    (("Relu", 0.0, 0.0), 0, 0.0),
    (("Clip", 0.0, 6.0), 0, 0.0),
    (("Clip", -np.inf, 1.25), 0, 0.0),
    (("Clip", -0.5, np.inf), 0, 0.0),
    (("LeakyRelu", 0.01, 0.0), 1, 0.0),
    (("LeakyRelu", -2.0, 0.0), 1, 0.0),
    (("Sigmoid", 0.0, 0.0), 8, 0.0),
    (("Tanh", 0.0, 0.0), 8, 0.0),
    (("Silu", 0.0, 0.0), 8, 0.0),
    (("HardSigmoid", 0.2, 0.5), 2, 1.0),
    (("HardSwish", 0.0, 0.0), 4, 3.0),
    (("Elu", 1.5, 0.0), 4, 3.0),
]
NUMBERS = np.concatenate(
    [
        np.linspace(-20, 20, 4001), np.geomspace(1e-30, 1e30, 601), -np.geomspace(1e-30, 1e30, 601),
        [0.0, -0.0, 1e-45, -1e-45, 88.72, 88.73, -87.3, -87.4, -103.9, 3.4e38, -3.4e38, 6.0, -3.0, 3.0],
    ]
).astype(np.float32)  # fmt: skip
ODD = np.array([np.nan, np.inf, -np.inf, -np.nan, 1.0], np.float32)


def apply(activation: tuple[str | None, float, float], values: np.ndarray, lanes: int) -> np.ndarray:
    """Return activation(values), through a convolution that multiplies by one."""
    case = Case(1, 1, (1, len(values)), (1, 1), (0, 0, 0, 0), activation=activation, lanes=lanes, threads=2)
    s = case.step(np.ones((1, 1, 1, 1), np.float32), None)
    tile = {"rows": 4, "columns": 1, "pixel_chunks": 2, "group_chunks": 1, "pixels_outside": 1}
    return run(DIRECT, s, {"x": values.reshape(1, 1, 1, -1)}, tile)[0].reshape(-1)


def test_every_activation_is_tested() -> None:
    assert {case[0][0] for case in CASES} == set(ACTIVATIONS)


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize(("activation", "roundings", "size"), CASES, ids=str)
def test_against_float64(activation: tuple[str, float, float], roundings: float, size: float, lanes: int) -> None:
    got = apply(activation, NUMBERS, lanes)
    with np.errstate(over="ignore"):
        wanted = activated(NUMBERS.astype(np.float64), activation)
        single = wanted.astype(np.float32)
    if roundings == 0:
        assert np.array_equal(got, single)
        return
    finite = np.isfinite(single)
    assert np.array_equal(got[~finite], single[~finite])
    # Results below the normal numbers may come out as zero.
    allowed = 2 * UNIT * roundings * np.maximum(abs(wanted), size) + 1.2e-38 * (1 + abs(NUMBERS.astype(np.float64)))
    excess = abs(got[finite] - wanted[finite]) / allowed[finite]
    worst = int(np.argmax(excess))
    assert excess[worst] <= 1, f"{NUMBERS[finite][worst]}: {got[finite][worst]}, wanted {wanted[finite][worst]}"


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("activation", [case[0] for case in CASES], ids=str)
def test_nan_and_infinity_as_the_formula_gives_them(activation: tuple[str, float, float], lanes: int) -> None:
    with np.errstate(invalid="ignore"):
        wanted = activated(ODD.astype(np.float64), activation)
    assert np.array_equal(apply(activation, ODD, lanes)[:4], wanted.astype(np.float32)[:4], equal_nan=True)


def test_names_differ_whenever_the_code_does() -> None:
    given = [Activation(), Activation("Clip", 0, 6), Activation("Clip", 0, 6.0000005), Activation("Clip", -0.0, 6)]
    assert len({a.label for a in given}) == len(given)
    assert all(a.label.isidentifier() or a.label.replace("_", "").isalnum() for a in given)
