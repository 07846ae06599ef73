"""Element-wise kernels: functions against float64, and every way operands can be broadcast."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_runner import each_width, lanes_here, run, step

from perwatt.cpu.kernels.elementwise import ELEMENTWISE

_erf, _erfc = np.vectorize(math.erf), np.vectorize(math.erfc)
EDGES = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 88.0, -88.0, 1e-30, -1e-30, 3e38, -3e38, 0.5, 1.5, -2.5]


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-_softplus(-x))


# operator: (float64 reference, attributes, ULP allowed, absolute slack)
UNARY = {
    "Relu": (lambda x: np.where(np.isnan(x), x, np.maximum(x, 0)), {}, 0, 0),
    "Clip": (lambda x: np.clip(x, -0.5, 1.25), {"min": -0.5, "max": 1.25}, 0, 0),
    "LeakyRelu": (lambda x: np.where(x < 0, np.float32(0.1) * x, x), {"alpha": float(np.float32(0.1))}, 1, 0),
    "Sigmoid": (_sigmoid, {}, 6, 1e-38),
    "Silu": (lambda x: x * _sigmoid(x), {}, 6, 2e-36),
    "Tanh": (np.tanh, {}, 4, 0),
    "HardSigmoid": (lambda x: np.clip(0.25 * x + 0.5, 0, 1), {"alpha": 0.25, "beta": 0.5}, 1, 6e-8),
    "HardSwish": (lambda x: x * np.clip(x / 6 + 0.5, 0, 1), {}, 3, 4e-7),
    "Elu": (lambda x: np.where(x < 0, 2 * np.expm1(np.minimum(x, 0)), x), {"alpha": 2.0}, 4, 0),
    "Selu": (lambda x: 1.5 * np.where(x < 0, 2 * np.expm1(np.minimum(x, 0)), x), {"alpha": 2.0, "gamma": 1.5}, 4, 0),
    # x/√2 is rounded, which far out on the left counts x² times
    "Gelu": (lambda x: 0.5 * x * _erfc(-x / math.sqrt(2)), {"approximate": "none"}, 160, 1e-38),
    "Exp": (np.exp, {}, 3, 1.2e-38),
    "Log": (np.log, {}, 3, 0),
    "Sqrt": (np.sqrt, {}, 0.5, 0),
    "Abs": (np.abs, {}, 0, 0),
    "Neg": (np.negative, {}, 0, 0),
    "Floor": (np.floor, {}, 0, 0),
    "Ceil": (np.ceil, {}, 0, 0),
    "Reciprocal": (lambda x: 1 / x, {}, 0.5, 0),
    "Softplus": (_softplus, {}, 6, 1.2e-38),
    "Softsign": (lambda x: x / (1 + np.abs(x)), {}, 2, 0),
    "Erf": (_erf, {}, 4, 0),
    "Mish": (lambda x: x * np.tanh(_softplus(x)), {}, 8, 2e-36),
    "Identity": (lambda x: x, {}, 0, 0),
    "Dropout": (lambda x: x, {}, 0, 0),
    "Cast": (lambda x: x, {"to": "float32"}, 0, 0),
}


def check(got: np.ndarray, wanted: np.ndarray, ulp: float, slack: float) -> None:
    """Compare in units of the last place of the exact result rounded to float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = wanted.astype(np.float32)
        assert np.array_equal(np.isnan(got), np.isnan(rounded))
        infinite = np.isinf(rounded) | np.isinf(got)
        near_overflow = np.abs(wanted) > 3.4e38
        assert np.array_equal(got[infinite & ~near_overflow], rounded[infinite & ~near_overflow])
        finite = np.isfinite(rounded) & np.isfinite(got)
        error = np.abs(got[finite].astype(np.float64) - wanted[finite])
        limit = (ulp + 0.5) * np.spacing(np.abs(rounded[finite])).astype(np.float64) + slack
    worst = np.argmax(error - limit) if error.size else 0
    assert (error <= limit).all(), f"{got[finite][worst]} is not {wanted[finite][worst]}"


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("operator", UNARY)
def test_functions(operator: str, lanes: int) -> None:
    reference, attributes, ulp, slack = UNARY[operator]
    rng = np.random.default_rng(2)
    spread = rng.normal(size=4000) * 10.0 ** rng.uniform(-6, 2, 4000)
    x = np.concatenate([EDGES, spread, np.linspace(-20, 20, 1001)]).astype(np.float32)
    with np.errstate(all="ignore"):
        wanted = reference(x.astype(np.float64))
    if operator == "Gelu":  # the limit at -infinity is 0
        wanted[np.isneginf(x)] = 0
    if operator in ("Silu", "HardSwish", "Mish"):  # -infinity times 0
        kept = ~np.isneginf(x)
        x, wanted = x[kept], wanted[kept]
    s = step(operator, [("x", x.shape)], [x.shape], lanes=lanes, threads=2, layouts="plain", **attributes)
    check(run(ELEMENTWISE, s, {"x": x})[0], wanted, ulp, slack)


@pytest.mark.parametrize("lanes", each_width())
def test_power(lanes: int) -> None:
    rng = np.random.default_rng(2)
    x = np.concatenate([np.repeat(EDGES, len(EDGES)), rng.uniform(0, 30, 3000), rng.normal(size=500)])
    y = np.concatenate([np.tile(EDGES, len(EDGES)), rng.normal(size=3000) * 12, rng.integers(-5, 6, 500)])
    x, y = x.astype(np.float32), y.astype(np.float32)
    s = step("Pow", [("x", x.shape), ("y", y.shape)], [x.shape], lanes=lanes, layouts="plain")
    with np.errstate(all="ignore"):
        check(run(ELEMENTWISE, s, {"x": x, "y": y})[0], np.power(x.astype(np.float64), y), 1, 1.2e-38)


MANY = {
    "Add": lambda *a: a[0] + a[1],
    "Sub": lambda *a: a[0] - a[1],
    "Mul": lambda *a: a[0] * a[1],
    "Div": lambda *a: a[0] / a[1],
    "PRelu": lambda *a: np.where(a[0] < 0, a[0] * a[1], a[0]),
    "Sum": lambda *a: sum(a),
    "Max": lambda *a: np.maximum.reduce(np.broadcast_arrays(*a)),
    "Min": lambda *a: np.minimum.reduce(np.broadcast_arrays(*a)),
    "Mean": lambda *a: sum(a) / len(a),
}
BLOCKED = [
    [(2, 19, 3, 5), (2, 19, 3, 5)],
    [(2, 19, 3, 5), (2, 19, 1, 1)],
    [(2, 1, 3, 5), (2, 19, 3, 5)],
    [(1, 19, 1, 1), (2, 19, 3, 5)],
    [(3, 1, 1, 1), (3, 32, 2, 2)],
    [(3, 33), (3, 33)],
    [(3, 33), (1, 33)],
    [(3, 33), (3, 1)],
]
CONSTANT = [(), (1,), (19, 1, 1), (1, 19, 1, 1), (2, 19, 1, 1), (3, 5), (1, 1, 3, 1), (2, 19, 3, 5), (1, 19, 3, 5)]
PLAIN = [
    [(2, 3, 4), (2, 3, 4)],
    [(7,), (1,)],
    [(), (5, 3)],
    [(3, 1, 5), (1, 4, 1)],
    [(2, 1, 3, 1, 2, 1), (1, 2, 1, 3, 1, 2)],
    [(1, 1000), (1000,)],
    [(4, 1), (4, 40)],
]


def arrays(shapes: list[tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return one array for each shape, no element near zero (it may be a divisor)."""
    rng = np.random.default_rng(11)
    made = {f"x{i}": np.asarray(rng.normal(size=shape), np.float32) for i, shape in enumerate(shapes)}
    return {name: np.where(np.abs(a) < 0.1, np.float32(0.5), a) for name, a in made.items()}


def compare(
    operator: str, feeds: dict[str, np.ndarray], lanes: int, threads: int, layouts: object, constants: set[str]
) -> None:
    wanted = MANY[operator](*(a.astype(np.float64) for a in feeds.values()))
    known = {name: feeds[name] for name in constants}
    s = step(
        operator, [(name, a.shape) for name, a in feeds.items()], [wanted.shape], lanes=lanes, threads=threads,
        layouts=layouts, constants=known, spare_blocks=threads - 1,
    )  # fmt: skip
    got = run(ELEMENTWISE, s, feeds)[0]
    size = sum(np.abs(a).max() for a in feeds.values()) + np.abs(wanted).max()
    np.testing.assert_allclose(got, wanted, rtol=0, atol=len(feeds) * 6e-8 * size)


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("operator", MANY)
def test_blocked_operands(operator: str, lanes: int) -> None:
    for threads, shapes in enumerate(BLOCKED, 1):
        if operator != "PRelu" or np.broadcast_shapes(*shapes) == shapes[0]:
            compare(operator, arrays(shapes), lanes, threads % 4 + 1, "blocked", set())


@pytest.mark.parametrize("lanes", each_width())
def test_blocked_with_constants(lanes: int) -> None:
    for operator in ("Div", "Sub"):
        for shape in CONSTANT:
            feeds = arrays([(2, 19, 3, 5), shape])
            compare(operator, feeds, lanes, 2, ["blocked", "plain", "blocked"], {"x1"})
    for shape in ((), (19,), (1, 19), (3, 19), (3, 1)):
        compare("Sub", arrays([(3, 19), shape]), lanes, 3, ["blocked", "plain", "blocked"], {"x1"})


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("shapes", PLAIN, ids=str)
def test_plain_broadcasts(shapes: list[tuple[int, ...]], lanes: int) -> None:
    for threads in (1, 3):
        compare("Sub", arrays(shapes), lanes, threads, "plain", set())
        compare("Max", arrays(shapes), lanes, threads, "plain", {"x1"})


@pytest.mark.parametrize("layout", ["plain", "blocked"])
@pytest.mark.parametrize("operator", ["Sum", "Max", "Min", "Mean"])
@pytest.mark.parametrize("count", [1, 3, 14])
def test_many_operands(operator: str, count: int, layout: str) -> None:
    compare(operator, arrays([(1, 17, 3, 3)] * count), lanes_here()[0], 2, layout, set())


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_plain_broadcast(data: st.DataObject) -> None:
    full = data.draw(st.lists(st.integers(1, 5), min_size=0, max_size=6))
    shapes = []
    for _ in range(2):
        kept = [size if data.draw(st.booleans()) else 1 for size in full]
        shapes.append(tuple(kept[data.draw(st.integers(0, len(kept))) :]))
    compare(
        "Sub", arrays(shapes), data.draw(st.sampled_from(lanes_here())), data.draw(st.integers(1, 5)), "plain", set()
    )


@pytest.mark.parametrize("lanes", each_width())
@pytest.mark.parametrize("layout", ["plain", "blocked"])
def test_batch_normalization(layout: str, lanes: int) -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(2, 19, 3, 4)).astype(np.float32)
    names = dict(zip("sbmv", rng.uniform(0.5, 2, size=(4, 19)).astype(np.float32), strict=True))
    s, b, m, v = (a.astype(np.float64).reshape(1, 19, 1, 1) for a in names.values())
    wanted = (x - m) / np.sqrt(v + 1e-3) * s + b
    for constants in [names, {}] if layout == "plain" else [names]:
        made = step(
            "BatchNormalization", [("x", x.shape), *((n, (19,)) for n in names)], [x.shape], lanes=lanes,
            layouts=[layout, *["plain"] * 4, layout], constants=constants, epsilon=1e-3,
        )  # fmt: skip
        np.testing.assert_allclose(run(ELEMENTWISE, made, {"x": x, **names})[0], wanted, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("lanes", each_width())
def test_spare_lanes_stay_finite(lanes: int) -> None:
    x = np.full((1, 3, 2, 2), 2.0, np.float32)
    for operator in ("Log", "Reciprocal", "Exp", "Sqrt"):
        s = step(operator, [("x", x.shape)], [x.shape], lanes=lanes)
        run(ELEMENTWISE, s, {"x": x}, garbage=-1e38)
        run(ELEMENTWISE, s, {"x": x}, garbage=0.0)


def test_what_does_not_fit_is_refused() -> None:
    x = ("x", (1, 3, 4, 5))
    assert ELEMENTWISE.accepts(step("Add", [x, ("y", (1, 3, 4, 1))], [x[1]])) is not None
    assert (
        ELEMENTWISE.accepts(step("Add", [x, ("y", x[1])], [x[1]], layouts=["blocked", "plain", "blocked"])) is not None
    )
    assert ELEMENTWISE.accepts(step("Cast", [x], [x[1]], to="int64")) is not None
    assert ELEMENTWISE.accepts(step("Flatten", [x], [(1, 60)])) is not None
