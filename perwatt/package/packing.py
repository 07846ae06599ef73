"""pack(): from a network and photographs to a package, with golden answers and the errors that rounding may cause."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from perwatt.errors import GoldenMismatch
from perwatt.graph import Graph, self_contained, write
from perwatt.package.golden import fingerprint, relative_errors
from perwatt.package.package import JSON, Golden, Package
from perwatt.package.preprocessing import Preprocessing, preprocess
from perwatt.package.reference import reference, tolerances

Tell = Callable[[str], None]


def pack(
    source: str | Path | bytes | Graph,
    name: str,
    preprocessing: Preprocessing,
    *,
    version: str = "1",
    labels: Sequence[str] | None = None,
    licence: str | None = None,
    origin: str | None = None,
    photos: Sequence[bytes] = (),
    expected: np.ndarray | None = None,
    evidence: Mapping[str, JSON] | None = None,
    tell: Tell | None = None,
) -> Package:
    """Return the package of a network: an ONNX file, its bytes or a Graph.

    `photos` are encoded photographs; the golden answers for them are computed by a reference in float64 that shares no
    code with perwatt's engine, and the error allowed to each precision follows from the network's own sensitivity
    (reference.py). `expected` [photos, values] are answers the caller knows, from the framework that trained the
    network for example: they must agree with the reference within FP32's tolerance. Raises GoldenMismatch when they do
    not, InvalidPackage, NetworkError, InputError.
    """
    say = tell or (lambda text: None)
    model = write(source, batch="batch") if isinstance(source, Graph) else self_contained(source)
    golden = None if not photos else _golden(model, preprocessing, tuple(photos), expected, say)
    return Package(
        name=name,
        version=version,
        model=model,
        preprocessing=preprocessing,
        labels=None if labels is None else tuple(labels),
        licence=licence,
        source=origin,
        golden=golden,
        evidence=evidence or {},
    )


def _golden(
    model: bytes, how: Preprocessing, photos: tuple[bytes, ...], expected: np.ndarray | None, say: Tell
) -> Golden:
    inputs = np.stack([preprocess(photo, how) for photo in photos])
    say(f"computing {len(photos)} golden answers in float64")
    outputs = reference(model, inputs)
    golden = Golden(
        images=photos,
        outputs=outputs.astype(np.float32),
        tolerances=tolerances(model, inputs, outputs, say),
        inputs=tuple(map(fingerprint, inputs)),
    )
    if expected is not None:
        _check_expected(golden, np.asarray(expected))
    return golden


def _check_expected(golden: Golden, expected: np.ndarray) -> None:
    if expected.reshape(len(expected), -1).shape != golden.outputs.shape:
        raise GoldenMismatch(
            f"expected answers {list(golden.outputs.shape)} as the network gives, got {list(expected.shape)}; give one "
            "row for each photograph"
        )
    errors = relative_errors(expected.reshape(golden.outputs.shape), golden.outputs)
    most = golden.tolerances["fp32"]
    if any(error is None or error > most for error in errors):
        worst = "not finite" if None in errors else f"{max(error for error in errors if error is not None):.2g}"
        raise GoldenMismatch(
            f"expected answers that the exported network gives within {most:.2g}, got an error of {worst}: the file "
            "does not compute what its maker computed; check preprocessing and export"
        )
