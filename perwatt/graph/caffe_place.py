"""Place: where one Caffe layer is being written into a Graph, and what it can ask for there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from perwatt.errors import NetworkError
from perwatt.graph.builder import Builder
from perwatt.graph.caffe_upgrade import Layer
from perwatt.graph.caffe_weights import Blob

# Operator, further inputs (a number becomes a constant) and attributes.
Step = tuple[str, Sequence[str | float], dict[str, object]]
MOST_ELEMENTS = 2**31 - 1  # of one tensor, in Caffe too


@dataclass
class Place:
    """One layer, the tensors it reads, its weights (None: the file has none), and the Graph in the making.

    `title` is the layer's name, made different from all others. `follower` is the Scale layer that a BatchNorm takes
    in, where one stands right behind it.
    """

    layer: Layer
    title: str
    inputs: tuple[str, ...]
    blobs: tuple[Blob, ...] | None
    builder: Builder
    taken: set[str]
    follower: "Place | None" = None
    asked: set[int] = field(default_factory=set)
    operators: list[str] = field(default_factory=list)

    def shape(self, position: int = 0) -> tuple[int, ...]:
        """Return the shape of one of the tensors that the layer reads."""
        return self.builder.shape(self.inputs[position])

    def parameters(self, name: str) -> Any:
        """Return one of the layer's messages, such as `pooling_param`; all of its defaults where it is not given."""
        return getattr(self.layer.parameters, name)

    def add(self, operator: str, inputs: Sequence[str], part: str = "", **attributes: object) -> str:
        """Add a node with one output, named as the layer, or as a part of it; returns the output's name."""
        made = self.builder.add(operator, inputs, name=self.new(part), **attributes)  # type: ignore[arg-type]
        assert isinstance(made, str)
        self.operators.append(operator)
        self.check_size(made)
        return made

    def check_size(self, name: str) -> None:
        """Raise NetworkError when a tensor has more elements than Caffe itself can count."""
        shape = self.builder.shape(name)
        if math.prod(shape) > MOST_ELEMENTS:
            raise self.refusal(
                f"tensors of at most {MOST_ELEMENTS} numbers", f"shape {shape}", "make the input smaller"
            )

    def chain(self, data: str, *steps: Step) -> str:
        """Add nodes one behind the other, the last with the layer's name; without steps return `data` itself."""
        for position, (operator, further, attributes) in enumerate(steps):
            part = "" if position == len(steps) - 1 else f"{operator.lower()}{position + 1}"
            by = f"{part or operator.lower()}.by"
            names = [name if isinstance(name, str) else self.constant(by, np.float32(name)) for name in further]
            data = self.add(operator, (data, *names), part, **attributes)
        return data

    def constant(self, part: str, array: np.ndarray | np.float32) -> str:
        """Keep an array under `layer.part`; returns its name."""
        return self.builder.constant(self.new(f".{part}"), array)

    def new(self, part: str = "") -> str:
        """Return a name that is not taken: that of the layer, or of a part of it."""
        wanted = self.title if not part else self.title + (part if part.startswith(".") else f"/{part}")
        while part and wanted in self.taken:
            wanted += "_"
        self.taken.add(wanted)
        return wanted

    def weights(self, position: int, shape: tuple[int, ...], why: str) -> np.ndarray:
        """Return a blob of the weights' file as an array of this shape; raises NetworkError when there is none such."""
        self.asked.add(position)
        if self.blobs is None or position >= len(self.blobs):
            count = 0 if self.blobs is None else len(self.blobs)
            raise self.refusal(
                f"blob {position} of shape {shape} ({why})",
                f"{count} blobs in the weights' file",
                "are prototxt and caffemodel of the same network?",
            )
        blob = self.blobs[position]
        if not blob.fits(shape):
            raise self.refusal(
                f"blob {position} of shape {shape} ({why})",
                f"shape {blob.array.shape} in the weights' file",
                "are prototxt and caffemodel of the same network?",
            )
        return blob.array.reshape(shape)

    def check_all_asked(self) -> None:
        """Raise NetworkError when the weights' file has blobs for this layer that it does not use."""
        if self.blobs is not None and len(self.blobs) > len(self.asked):
            extra = [str(blob.array.shape) for at, blob in enumerate(self.blobs) if at not in self.asked]
            raise self.refusal(
                f"{len(self.asked)} blobs",
                f"{len(self.blobs)} in the weights' file, {', '.join(extra)} besides",
                "does the prototxt leave out a bias_term, or belong to another network?",
            )

    def axis(self, given: int, what: str = "axis", *, end: bool = False) -> int:
        """Return an axis of the first input counted from the front; with `end`, one behind the last is allowed."""
        rank = len(self.shape())
        if not -rank - end <= given < rank + end:
            raise self.refusal(f"{what} from {-rank} to {rank - 1 + end}", str(given), "correct the prototxt")
        return given + rank + end if given < 0 else given

    def refusal(self, expected: str, got: str, remedy: str) -> NetworkError:
        """Return the error for a layer that cannot be used as it stands."""
        return NetworkError(f"{self.layer.type} layer {self.layer.name!r}: expected {expected}, got {got}; {remedy}")
