"""Package: what has to travel together so that a network answers in production as it did when it was made."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np

from perwatt.errors import InvalidPackage
from perwatt.package.preprocessing import Preprocessing

Precision = Literal["fp32", "fp16", "bf16", "auto"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
JSON = str | int | float | bool | None | list["JSON"] | dict[str, "JSON"]
MOST_IMAGES = 64
MOST_IMAGE_BYTES = 32 << 20
MOST_LABELS = 100_000
MOST_TEXT = 4096
MOST_EVIDENCE_BYTES = 4 << 20
# A name and a version become parts of addresses, file names and metrics.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# What a terminal would obey instead of print.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class Golden:
    """Photographs with the answers that the network has to give for them.

    `images` are encoded photographs as they came. `outputs` [images, values] float32 is the first output for each, from
    a reference that rounds in float64. `tolerances` holds, by precision, the largest error that rounding explains: the
    largest |difference| over the largest |expected| of an image. A precision that is missing cannot be told from a
    wrong answer. `inputs` are SHA-256 digests of the preprocessed images (little-endian float32), which tell a changed
    decoder from a changed network; empty when unknown. Raises InvalidPackage.
    """

    images: tuple[bytes, ...]
    outputs: np.ndarray
    tolerances: Mapping[Precision, float]
    inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.images) <= MOST_IMAGES:
            raise InvalidPackage(f"golden examples: expected 1 to {MOST_IMAGES} photographs, got {len(self.images)}")
        if any(not 0 < len(image) <= MOST_IMAGE_BYTES for image in self.images):
            raise InvalidPackage(f"golden examples: expected photographs of 1 to {MOST_IMAGE_BYTES:,} bytes")
        outputs = np.array(self.outputs, dtype=np.float32)
        if outputs.ndim != 2 or len(outputs) != len(self.images) or outputs.shape[1] < 1:
            raise InvalidPackage(
                f"golden examples: expected outputs [{len(self.images)}, values], got {list(outputs.shape)}"
            )
        if not np.isfinite(outputs).all():
            raise InvalidPackage("golden examples: expected finite outputs, got NaN or infinity; mend the network")
        if not outputs.any(axis=1).all():
            raise InvalidPackage("golden examples: expected outputs that are not all 0; choose other photographs")
        for precision, tolerance in self.tolerances.items():
            if precision not in PRECISIONS or not (isfinite(tolerance) and 0 < tolerance < 1):
                raise InvalidPackage(
                    f"golden examples: expected a tolerance above 0 and below 1 for {', '.join(PRECISIONS)}, got "
                    f"{tolerance!r} for {precision!r}"
                )
        if "fp32" not in self.tolerances:
            raise InvalidPackage("golden examples: expected a tolerance for fp32, got none")
        if self.inputs and (len(self.inputs) != len(self.images) or not all(map(SHA256.fullmatch, self.inputs))):
            raise InvalidPackage(f"golden examples: expected {len(self.images)} SHA-256 digests of inputs, got others")
        outputs.flags.writeable = False
        object.__setattr__(self, "outputs", outputs)
        object.__setattr__(self, "tolerances", MappingProxyType(dict(self.tolerances)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Golden) and (
            (self.images, dict(self.tolerances), self.inputs, self.outputs.shape, self.outputs.tobytes())
            == (other.images, dict(other.tolerances), other.inputs, other.outputs.shape, other.outputs.tobytes())
        )

    def __hash__(self) -> int:
        return hash((self.images, self.outputs.tobytes()))


@dataclass(frozen=True)
class Package:
    """A network that can be deployed.

    `model` is an ONNX file with its weights inside; `labels` name its classes in the order of the output; `evidence`
    holds plain JSON objects of other rooms: "export", "training", "precision". Raises InvalidPackage when a part cannot
    be used as what it is.
    """

    name: str
    version: str
    model: bytes
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None = None
    licence: str | None = None
    source: str | None = None
    golden: Golden | None = None
    evidence: Mapping[str, JSON] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        for what, text in (("name", self.name), ("version", self.version)):
            if not NAME.fullmatch(text):
                raise InvalidPackage(
                    f"{what}: expected 1 to 64 letters, digits, dots, dashes and underscores, beginning with a letter "
                    f"or digit, got {text[:80]!r}; choose another"
                )
        if not self.model:
            raise InvalidPackage("model: expected an ONNX file, got nothing")
        labels = self.labels
        if labels is not None and not 1 <= len(labels) <= MOST_LABELS:
            raise InvalidPackage(
                f"labels: expected 1 to {MOST_LABELS:,}, got {len(labels):,}; leave them out if unknown"
            )
        for what, texts in (("labels", labels or ()), ("licence", (self.licence,)), ("source", (self.source,))):
            for line in texts:
                if line is not None and (not line.strip() or len(line) > MOST_TEXT or CONTROL.search(line)):
                    raise InvalidPackage(
                        f"{what}: expected a line of 1 to {MOST_TEXT} characters without control characters, got "
                        f"{line[:80]!r}"
                    )
        if labels is not None and self.golden is not None and self.golden.outputs.shape[1] != len(labels):
            raise InvalidPackage(
                f"labels: expected one for each of the {self.golden.outputs.shape[1]} values of the output, got "
                f"{len(labels)}; give the network's own list"
            )
        object.__setattr__(self, "evidence", MappingProxyType(_plain(self.evidence)))

    def __hash__(self) -> int:
        return hash((self.name, self.version, self.model))

    @property
    def model_sha256(self) -> str:
        """The SHA-256 digest of the ONNX file."""
        return hashlib.sha256(self.model).hexdigest()


def _plain(evidence: Mapping[str, JSON]) -> dict[str, JSON]:
    try:
        text = json.dumps(dict(evidence), allow_nan=False)
        plain: dict[str, JSON] = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidPackage(f"evidence: expected plain JSON, got {type(error).__name__}: {error}") from error
    if len(text) > MOST_EVIDENCE_BYTES:
        raise InvalidPackage(
            f"evidence: expected at most {MOST_EVIDENCE_BYTES:,} bytes of JSON, got {len(text):,}; summarise it"
        )
    if not all(isinstance(value, dict) for value in plain.values()):
        raise InvalidPackage("evidence: expected an object for each entry, such as export, training or precision")
    return plain
