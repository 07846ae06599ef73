"""Arrays that callers hand in: any that can be copied are taken, all others refused in one line."""

from collections.abc import Callable

import numpy as np
import pytest
from small_graphs import Net

import perwatt
from perwatt.errors import InputError
from perwatt.graph import Graph

SHAPE = (2, 3, 6, 5)


def graph() -> Graph:
    net = Net(2)
    return net.graph(net.add("Relu", net.conv(net.input(3, 6, 5), 7, 3)))


@pytest.fixture(scope="module")
def model() -> perwatt.Model:
    return perwatt.compile(graph(), tune="estimate")


IMAGES = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def misaligned(x: np.ndarray) -> np.ndarray:
    raw = np.zeros(x.nbytes + 1, np.uint8)
    made = raw[1:].view(np.float32).reshape(x.shape)
    made[...] = x
    return made


def read_only(x: np.ndarray) -> np.ndarray:
    made = x.copy()
    made.flags.writeable = False
    return made


SAME: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Fortran order": np.asfortranarray,
    "channels last": lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    "every second": lambda x: np.repeat(x, 2, axis=3)[..., ::2],
    "backwards": lambda x: x[:, :, ::-1].copy()[:, :, ::-1],
    "read only": read_only,
    "misaligned": misaligned,
    "broadcast": lambda x: x,
    "a subclass": lambda x: np.ma.masked_array(x),
    "from memory": lambda x: np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),
}


@pytest.mark.parametrize("how", SAME)
def test_the_same_numbers_give_the_same_answer(model: perwatt.Model, how: str) -> None:
    wanted = model(IMAGES)
    given = SAME[how](IMAGES)
    before = np.array(given)
    assert np.array_equal(model(given), wanted)
    assert np.array_equal(np.array(given), before), "inputs are never written"


def test_a_stretched_image_is_copied(model: perwatt.Model) -> None:
    stretched = np.broadcast_to(IMAGES[:1, :1], SHAPE)
    assert np.array_equal(model(stretched), model(np.array(stretched)))


WRONG: dict[str, tuple[object, str]] = {
    "double": (IMAGES.astype(np.float64), "expected float32, got float64"),
    "half": (IMAGES.astype(np.float16), "float16"),
    "bytes": (np.zeros(SHAPE, np.uint8), "uint8"),
    "other byte order": (IMAGES.astype(">f4"), ">f4"),
    "batch": (IMAGES[:1], r"expected shape \(2, 3, 6, 5\), got \(1, 3, 6, 5\).*batch=1"),
    "rank": (IMAGES[0], r"got \(3, 6, 5\)"),
    "layout": (IMAGES.transpose(0, 2, 3, 1), r"got \(2, 6, 5, 3\)"),
    "scalar": (np.float32(1), "NumPy array, got float32"),
    "empty": (IMAGES[:0], r"got \(0, 3, 6, 5\)"),
    "list": (IMAGES.tolist(), "expected a NumPy array, got list"),
    "none": (None, "expected a NumPy array, got NoneType"),
    "objects": (np.empty(SHAPE, object), "object"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_refused(model: perwatt.Model, what: str) -> None:
    array, words = WRONG[what]
    with pytest.raises(InputError, match=words) as refusal:
        model(array)  # type: ignore[arg-type]
    assert "\n" not in str(refusal.value)
    assert np.isfinite(model(IMAGES)).all()  # and the Model goes on


def test_names_must_be_the_networks(model: perwatt.Model) -> None:
    (name,) = model.inputs
    with pytest.raises(InputError, match="no input is named 'pictures'"):
        model.run({name: IMAGES, "pictures": IMAGES})
    with pytest.raises(InputError, match=f"expected an array for input '{name}', got pictures"):
        model.run({"pictures": IMAGES})
    with pytest.raises(InputError, match="got nothing"):
        model.run({})


def test_several_inputs_need_names() -> None:
    net = Net(1)
    x, y = net.input(4), net.input(4)
    model = perwatt.compile(net.graph(net.add("Add", x, y)), tune="estimate")
    one = np.ones((1, 4), np.float32)
    with pytest.raises(InputError, match="one array for each"):
        model(one)
    assert np.array_equal(next(iter(model.run({x: one, y: 2 * one}).values())), 3 * one)
    assert np.array_equal(next(iter(model.run({x: one, y: one}).values())), 2 * one)  # one array in two places


def test_nan_and_infinity_in_an_image_stay_in_it(model: perwatt.Model) -> None:
    clean = model(IMAGES)
    for value in (np.nan, np.inf, -np.inf):
        sick = IMAGES.copy()
        sick[1, 2, 3, 4] = value
        got = model(sick)
        assert np.array_equal(got[0], clean[0])
        touched = np.zeros((6, 5), bool)
        touched[2:5, 3:5] = True
        assert np.array_equal(got[1][:, ~touched], clean[1][:, ~touched]), "further than the window reaches"
        if np.isnan(value):
            assert np.isnan(got[1][:, touched]).all()
        else:
            assert (np.isposinf(got[1]) | (got[1] == 0))[:, touched].all()
    assert np.array_equal(model(IMAGES), clean), "what a call leaves behind must not reach the next"


def test_results_belong_to_the_caller(model: perwatt.Model) -> None:
    first = model(IMAGES)
    kept = first.copy()
    model(-IMAGES)
    assert np.array_equal(first, kept)
    first[...] = 7
    assert np.array_equal(model(IMAGES), kept)
