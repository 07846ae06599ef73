"""Golden examples: an honest engine passes at any batch, and whatever changed since is found and named."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import onnxruntime
import pytest
from small_package import HOW, photograph, small_network, small_package

from perwatt.errors import GoldenMismatch, InputError, InvalidPackage, NetworkError
from perwatt.graph import Builder, write
from perwatt.package import Golden, Package, Precision, pack, preprocess, replay
from perwatt.package import golden as golden_file
from perwatt.package import open as open_package
from perwatt.package.golden import require
from perwatt.package.reference import LAYER_ERRORS, TIMES, UNRELATED, reference, spread, tolerances

Run = Callable[[np.ndarray], np.ndarray]


@cache
def package() -> Package:
    return small_package()


def rival(model: bytes) -> Run:
    """Run the network in ONNX Runtime."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def with_golden(whole: Package, **changes: object) -> Package:
    assert whole.golden is not None
    return replace(whole, golden=replace(whole.golden, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8])
def test_engines_agree_at_any_batch(batch: int) -> None:
    for run in (rival(package().model), open_package(package(), batch, tune="estimate", threads=2)):
        found = replay(package(), run, batch=batch)
        assert found.agrees
        assert found.largest_error is not None
        assert 0 < found.largest_error < found.tolerance / 3
        assert found.other_inputs == 0
        assert len(found.errors) == 3


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_held_to_its_own_tolerance(precision: Precision) -> None:
    model = open_package(package(), 2, precision, 2, tune="estimate")
    found = replay(package(), model, precision, 2)
    assert found.agrees
    assert package().golden is not None
    assert found.tolerance == package().golden.tolerances[precision]


def test_expected_answers_are_those_of_another_implementation() -> None:
    assert package().golden is not None
    inputs = np.stack([preprocess(image, HOW) for image in package().golden.images])
    np.testing.assert_allclose(package().golden.outputs, rival(package().model)(inputs), rtol=0, atol=1e-6)


def test_every_place_of_a_batch_is_checked() -> None:
    honest = rival(package().model)
    for place in range(5):

        def lying(images: np.ndarray, place: int = place) -> np.ndarray:
            answers = honest(images)
            answers[place] = answers[(place + 1) % 3]
            return answers

        assert not replay(package(), lying, batch=5).agrees


def changed_weights() -> Run:
    session = rival(small_network(seed=1))
    return session


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: changed_weights(), "finite"),
        (lambda: lambda images: rival(package().model)(images[:, ::-1]), "finite"),  # RGB for BGR
        (lambda: lambda images: rival(package().model)(images[..., ::-1].copy()), "finite"),  # mirrored
        (lambda: lambda images: rival(package().model)(images + np.float32(0.02)), "finite"),  # mean off by one
        (lambda: lambda images: rival(package().model)(images * np.float32(1.004)), "finite"),  # divided by 256
        (lambda: lambda images: np.roll(rival(package().model)(images), 1, axis=0), "finite"),
        (lambda: lambda images: np.zeros((len(images), 5), np.float32), "finite"),
        (lambda: lambda images: np.full((len(images), 5), np.nan, np.float32), "none"),
        (lambda: lambda images: np.full((len(images), 5), np.inf, np.float32), "none"),
    ],
)
def test_what_changed_is_found(make: Callable[[], Run], error: str) -> None:
    found = replay(package(), make(), batch=3)
    assert not found.agrees
    assert (found.largest_error is None) == (error == "none")
    with pytest.raises(GoldenMismatch, match="its inputs are the same"):
        require(package(), found)


@pytest.mark.parametrize(
    "changes",
    [
        {"channel_order": "rgb"},
        {"mean": (103.0, 117.0, 123.0)},
        {"scale": (0.02, 0.02, 0.0201)},
        {"interpolation": "bicubic"},
        {"resize_to": 15},
        {"resize": "squash"},
        {"resize": "crop"},
    ],
)
def test_changed_preprocessing_is_found_and_named(changes: dict[str, object]) -> None:
    other = replace(package(), preprocessing=replace(HOW, **changes))  # type: ignore[arg-type]
    found = replay(other, rival(package().model), batch=1)
    assert not found.agrees
    assert found.other_inputs == 3
    with pytest.raises(GoldenMismatch, match="the pixels of 3 differ already"):
        open_package(other, tune="estimate")


def test_another_decoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_one(photo: bytes, how: object) -> np.ndarray:
        image = preprocess(photo, HOW)
        image[0, :3] += np.float32(0.02)
        return image

    monkeypatch.setattr(golden_file, "preprocess", off_by_one)
    with pytest.raises(GoldenMismatch, match=r"pixels of 3 differ already.*Pillow"):
        open_package(package(), tune="estimate")


@pytest.mark.parametrize("shape", [(3, 4), (2, 5), (3, 5, 1, 2), (15,), ()])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(GoldenMismatch, match="expected 5 values for each of 3"):
        replay(package(), lambda images: np.zeros(shape, np.float32), batch=3)


def test_a_trailing_shape_does_not_matter() -> None:
    honest = rival(package().model)
    assert replay(package(), lambda images: honest(images).reshape(-1, 5, 1, 1), batch=2).agrees


def test_golden_photographs_that_cannot_be_decoded_are_refused() -> None:
    broken = with_golden(package(), images=(b"\x89PNG\r\n\x1a\n" + b"\0" * 50, *package().golden.images[1:]))  # type: ignore[union-attr]
    with pytest.raises(GoldenMismatch, match="golden example"):
        replay(broken, rival(package().model))


def test_a_package_without_golden_examples_is_opened_only_on_request() -> None:
    bare = replace(package(), golden=None)
    with pytest.raises(GoldenMismatch, match="expected golden examples"):
        open_package(bare, tune="estimate")
    model = open_package(bare, 2, tune="estimate", unproven=True)
    assert model(np.zeros((2, 3, 12, 10), np.float32)).shape == (2, 5)


def test_a_precision_without_a_tolerance_is_refused() -> None:
    narrow = with_golden(package(), tolerances={"fp32": 1e-3})
    with pytest.raises(GoldenMismatch, match="expected a tolerance for bf16, got fp32"):
        open_package(narrow, precision="bf16", tune="estimate")
    with pytest.raises(InputError, match="int8"):
        replay(package(), rival(package().model), "int8")  # type: ignore[arg-type]


def test_a_network_that_reads_something_else_is_refused() -> None:
    other = replace(package(), preprocessing=replace(HOW, size=(12, 12)))
    with pytest.raises(InvalidPackage, match=r"\[1, 3, 12, 12\].*\[1, 3, 12, 10\]"):
        open_package(other, tune="estimate")


def test_a_model_that_is_no_network_is_refused() -> None:
    with pytest.raises(NetworkError):
        open_package(replace(package(), model=b"\0" * 100), tune="estimate")


# Packing.


def test_answers_of_the_framework_are_checked() -> None:
    photos = [photograph(1), photograph(2)]
    inputs = np.stack([preprocess(photo, HOW) for photo in photos])
    right = rival(small_network())(inputs)
    made = pack(small_network(), "small", HOW, photos=photos, expected=right)
    assert made.golden is not None
    with pytest.raises(GoldenMismatch, match="does not compute what its maker computed"):
        pack(small_network(), "small", HOW, photos=photos, expected=right[::-1])
    with pytest.raises(GoldenMismatch, match="got an error of not finite"):
        pack(small_network(), "small", HOW, photos=photos, expected=np.full_like(right, np.nan))
    with pytest.raises(GoldenMismatch, match="one row for each photograph"):
        pack(small_network(), "small", HOW, photos=photos, expected=right[:1])


def test_progress_is_told() -> None:
    told: list[str] = []
    small_package(tell=told.append)
    assert len(told) == 3
    assert "float64" in told[0]


# Tolerances.


def rounded(array: np.ndarray, precision: Precision) -> np.ndarray:
    """Round to nearest, ties to even, by hand for BF16."""
    if precision == "fp16":
        return array.astype(np.float16).astype(np.float32)
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    bits = bits + (((bits >> 16) & 1) + 0x7FFF).astype(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def truly_rounded(model: bytes, inputs: np.ndarray, precision: Precision) -> np.ndarray:
    """Return the answers when weights and results of dense layers are rounded for good."""
    from perwatt.graph.reference import Reference

    run = Reference(model, np.float32, lambda weights: rounded(weights, precision))
    return run(rounded(inputs, precision), lambda result: rounded(result, precision))


@pytest.mark.parametrize("seed", range(6))
def test_tolerances_cover_true_rounding_and_little_more(seed: int) -> None:
    model = small_network(seed, softmax=bool(seed % 2))
    inputs = np.stack([preprocess(photograph(10 * seed + place), HOW) for place in range(4)])
    exact = reference(model, inputs)
    allowed = tolerances(model, inputs, exact, lambda text: None)
    assert 0 < allowed["fp32"] < allowed["fp16"] < allowed["bf16"] == allowed["auto"]
    errors = {}
    for precision in ("fp16", "bf16"):
        found = golden_file.relative_errors(truly_rounded(model, inputs, precision), exact)  # type: ignore[arg-type]
        errors[precision] = max(error for error in found if error is not None)
        # Five times the RMS of the worst photograph: true errors lie below, and not by orders of magnitude.
        assert allowed[precision] / 60 < errors[precision] <= allowed[precision]  # type: ignore[index]
    # FP16 behind the back of a package that is served in FP32 is found out.
    assert errors["fp16"] > allowed["fp32"]


def test_one_layer_errs_as_the_formula_says() -> None:
    """y = W x with independent entries: disturbed by s in the weights and by s in the result, y errs by s sqrt(2)."""
    random = np.random.default_rng(0)
    b = Builder("layer")
    flat = b.add("Flatten", (b.input("x", (1, 3, 10, 10)),), axis=1)
    weights = b.constant("w", random.standard_normal((300, 2000)).astype(np.float32))
    model = write(b.finish((b.add("Gemm", (flat, weights), alpha=1.0, beta=1.0, transA=0, transB=0),)), batch="batch")
    inputs = random.standard_normal((4, 3, 10, 10)).astype(np.float32)
    exact = reference(model, inputs)
    size = 1e-3
    got = spread(model, inputs, exact, size, draws=20) / TIMES
    # The largest of 2000 normal errors over the largest of 2000 normal values is near 1 for both, so s sqrt(2) remains;
    # each maximum scatters by about 0.1 and the worst of four photographs is taken.
    assert got == pytest.approx(size * np.sqrt(2), rel=0.25)


def nearly_cancelling(offset: float) -> bytes:
    """Return a network that gives the small difference of two large, nearly equal results."""
    random = np.random.default_rng(0)
    b = Builder("difference")
    flat = b.add("Flatten", (b.input("x", (1, 3, 12, 10)),), axis=1)
    large = random.standard_normal((360, 5)).astype(np.float32)
    other = large + np.float32(offset) * random.standard_normal((360, 5)).astype(np.float32)
    how = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    first = b.add("Gemm", (flat, b.constant("first", large)), **how)
    second = b.add("Gemm", (flat, b.constant("second", other)), **how)
    return write(b.finish((b.add("Sub", (first, second)),)), batch="batch")


def test_a_network_that_cancels_gets_no_tolerance_that_means_nothing() -> None:
    inputs = np.stack([preprocess(photograph(place), HOW) for place in range(2)])
    model = nearly_cancelling(0.02)
    allowed = tolerances(model, inputs, reference(model, inputs), lambda text: None)
    assert "bf16" not in allowed
    assert allowed["auto"] == UNRELATED
    model = nearly_cancelling(1e-6)
    with pytest.raises(NetworkError, match="survive rounding in FP32"):
        tolerances(model, inputs, reference(model, inputs), lambda text: None)


def test_a_network_that_gives_no_numbers_is_refused() -> None:
    model = nearly_cancelling(np.inf)
    with pytest.raises(NetworkError, match="finite"):
        pack(model, "difference", HOW, photos=[photograph(1)])


def test_the_sizes_are_those_of_the_formats() -> None:
    """Measured on numbers of every size, rounded for good, the RMS relative error is what the tolerances assume."""
    random = np.random.default_rng(0)
    numbers = (2.0 ** random.uniform(0, 8, 200_000)).astype(np.float32)
    for precision in ("fp16", "bf16"):
        errors = rounded(numbers, precision) / numbers.astype(np.float64) - 1  # type: ignore[arg-type]
        assert np.sqrt(np.mean(errors**2)) == pytest.approx(LAYER_ERRORS[precision], rel=0.02)


def test_a_golden_set_says_equal_only_of_equal_ones() -> None:
    golden = package().golden
    assert isinstance(golden, Golden)
    assert golden == replace(golden)
    assert golden != replace(golden, outputs=golden.outputs + 1)
    assert golden != replace(golden, tolerances={"fp32": 0.5})
    assert len({golden, replace(golden)}) == 1
