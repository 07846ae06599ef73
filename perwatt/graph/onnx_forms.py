"""Forms: how each operator of the table looked from opset 7 to today, brought into the one form of the table.

`canonical` returns one or more steps of the table that mean what the ONNX node means, or None where the table cannot
say it (a target that is known only at run time, a second output, a training mode).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from perwatt.graph.graph import Value
from perwatt.graph.operators import OPERATORS

# Element types between which a cast means what it means in NumPy.
PLAIN = {"float16", "bfloat16", "float32", "float64", "bool"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}


@dataclass(frozen=True)
class Step:
    """One node of the table, not yet complete; a name that starts with ? is a tensor between two steps."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Sight:
    """What is known where a node stands: its own attributes, the opset, tensors' Values and the constants."""

    node: onnx.NodeProto
    opset: int
    attributes: Mapping[str, object]
    values: Mapping[str, Value]
    constants: Mapping[str, np.ndarray]

    def shape(self, position: int = 0) -> tuple[int, ...]:
        """Return the shape of an input."""
        return self.values[self.node.input[position]].shape

    def has(self, position: int) -> bool:
        """Return whether an input is there."""
        return len(self.node.input) > position and self.node.input[position] != ""

    def known(self, position: int) -> list[int | float] | None:
        """Return an input's numbers as a flat list when it is a constant, else None."""
        array = self.constants.get(self.node.input[position])
        return None if array is None else array.reshape(-1).tolist()


def canonical(sight: Sight) -> tuple[Step, ...] | None:
    """Return the steps of the table that mean what the node means, or None where there are none."""
    operator = sight.node.op_type
    special = _FORMS.get(operator)
    if special is not None:
        return special(sight)
    row = OPERATORS.get(operator)
    if row is None or not onnx.defs.has(operator, sight.opset, "") or len(sight.node.output) != 1:
        return None
    given = {name: value for name, value in sight.attributes.items() if name in row.attributes}
    if set(sight.attributes) - set(given):
        return None
    return (_step(sight, given),)


def _step(sight: Sight, attributes: dict[str, object], operator: str = "", inputs: int | None = None) -> Step:
    """Return one step with the node's own first output and its first `inputs` inputs (all, when not given)."""
    names = list(sight.node.input) if inputs is None else list(sight.node.input)[:inputs]
    while names and names[-1] == "":
        names.pop()
    return Step(operator or sight.node.op_type, tuple(names), (sight.node.output[0],), attributes)


def _only_first_output(sight: Sight) -> bool:
    return not any(sight.node.output[1:])


def _window(sight: Sight) -> tuple[Step, ...] | None:
    """Conv and the pools: `auto_pad` becomes pads."""
    if not _only_first_output(sight):
        return None
    given = {name: value for name, value in sight.attributes.items() if name not in ("auto_pad", "storage_order")}
    how = str(sight.attributes.get("auto_pad", "NOTSET"))
    if how == "VALID":
        given["pads"] = None
    elif how in ("SAME_UPPER", "SAME_LOWER"):
        shape = sight.shape()[2:]
        kernel = given.get("kernel_shape") or sight.shape(1)[2:]
        strides, dilations = given.get("strides") or (1,) * len(shape), given.get("dilations") or (1,) * len(shape)
        given["pads"] = same_pads(shape, kernel, strides, dilations, how == "SAME_UPPER")  # type: ignore[arg-type]
        given["ceil_mode"] = 0  # the size is already fixed to size/stride, rounded up
    if sight.node.op_type == "Conv":
        given.pop("ceil_mode", None)
    return (_step(sight, given),)


def _transposed_window(sight: Sight) -> tuple[Step, ...] | None:
    """ConvTranspose: the size of the output, named or meant by `auto_pad`, becomes pads.

    What is cut off, is cut in halves, of an odd number one more in front, but for SAME_UPPER; what is missing of a size
    that is named is added behind (ONNX ConvTranspose; ONNX Runtime). Where strides are wider than windows, runtimes
    differ on what `auto_pad` means: that stays foreign.
    """
    given = dict(sight.attributes)
    how, named = str(given.pop("auto_pad", "NOTSET")), given.pop("output_shape", None)
    if how == "VALID" and named is None:
        given["pads"] = None
    if named is None and how not in ("SAME_UPPER", "SAME_LOWER"):
        return (_step(sight, given),)
    shape = sight.shape()[2:]

    def numbers(name: str, usual: Sequence[int]) -> Sequence[int]:
        return given.get(name) or usual  # type: ignore[return-value]

    ones, zeros = (1,) * len(shape), (0,) * len(shape)
    kernels, strides = numbers("kernel_shape", sight.shape(1)[2:]), numbers("strides", ones)
    dilations, paddings = numbers("dilations", ones), numbers("output_padding", zeros)
    wanted: Sequence[int] = [size * stride for size, stride in zip(shape, strides, strict=True)]
    if named is not None:
        wanted = named[-len(shape) :]  # type: ignore[index] # some name images and channels too
    begins, ends, added = [], [], []
    columns = zip(shape, wanted, kernels, strides, dilations, paddings, strict=True)
    for size, out, kernel, stride, dilation, more in columns:
        excess = stride * (size - 1) + more + dilation * (kernel - 1) + 1 - out
        if excess < 0 and named is None:
            return None
        cut = max(0, excess)
        begins.append(cut // 2 if how == "SAME_UPPER" else cut - cut // 2)
        ends.append(cut - begins[-1])
        added.append(more + max(0, -excess))
    return (_step(sight, {**given, "pads": (*begins, *ends), "output_padding": tuple(added)}),)


def same_pads(
    shape: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], upper: bool
) -> tuple[int, ...]:
    """Return the pads for which the output has size/stride elements, rounded up; an odd one goes behind if `upper`."""
    begins, ends = [], []
    for size, width, stride, dilation in zip(shape, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + dilation * (width - 1) + 1 - size)
        begins.append(total // 2 if upper else total - total // 2)
        ends.append(total - begins[-1])
    return (*begins, *ends)


def _batch_normalization(sight: Sight) -> tuple[Step, ...] | None:
    given = sight.attributes
    if not _only_first_output(sight) or given.get("training_mode", 0) or not given.get("spatial", 1):
        return None
    return (_step(sight, {"epsilon": given.get("epsilon", 1e-5)}),)


def _dropout(sight: Sight) -> tuple[Step, ...] | None:
    training = sight.known(2) if sight.has(2) else [0]
    if not _only_first_output(sight) or training is None or any(training):
        return None
    return (_step(sight, {}, inputs=1),)


def _softmax(sight: Sight) -> tuple[Step, ...] | None:
    """Before opset 13, Softmax saw its input as a matrix: everything from `axis` on is one row."""
    node, shape = sight.node, sight.shape()
    axis = int(sight.attributes.get("axis", -1 if sight.opset >= 13 else 1))  # type: ignore[call-overload]
    if sight.opset >= 13:
        return (_step(sight, {"axis": axis}),)
    axis += len(shape) if axis < 0 else 0
    wide = [place for place in range(axis, len(shape)) if shape[place] != 1]
    if len(wide) <= 1 and axis < len(shape):
        return (_step(sight, {"axis": wide[0] if wide else axis}),)
    return (
        Step("Flatten", (node.input[0],), ("?rows",), {"axis": axis}),
        Step(node.op_type, ("?rows",), ("?soft",), {"axis": 1}),
        Step("Reshape", ("?soft",), (node.output[0],), {"shape": shape}),
    )


def _clip(sight: Sight) -> tuple[Step, ...] | None:
    bounds: dict[str, object] = {}
    for position, name in enumerate(("min", "max"), start=1):
        if sight.opset < 11:
            if name in sight.attributes:
                bounds[name] = sight.attributes[name]
        elif sight.has(position):
            known = sight.known(position)
            if known is None or len(known) != 1 or (isinstance(known[0], int) and abs(known[0]) > 2**53):
                return None
            bounds[name] = known[0]
    return (_step(sight, bounds, inputs=1),)


def _axes(sight: Sight, since: int) -> tuple[bool, list[int | float] | None]:
    """Return whether the axes are known, and the axes, None where not given; before `since` they are an attribute."""
    if sight.opset < since:
        return True, sight.attributes.get("axes")  # type: ignore[return-value]
    if not sight.has(1):
        return True, None
    axes = sight.known(1)
    return axes is not None, axes


def _squeeze(sight: Sight) -> tuple[Step, ...] | None:
    known, axes = _axes(sight, 13)
    return (_step(sight, {"axes": axes}, inputs=1),) if known else None


def _reduce(sight: Sight) -> tuple[Step, ...] | None:
    known, axes = _axes(sight, 13 if sight.node.op_type == "ReduceSum" else 18)
    if not known:
        return None
    if not axes:
        axes = [] if sight.attributes.get("noop_with_empty_axes", 0) else None
    return (_step(sight, {"axes": axes, "keepdims": sight.attributes.get("keepdims", 1)}, inputs=1),)


def _reshape(sight: Sight) -> tuple[Step, ...] | None:
    target = sight.known(1)
    if target is None:
        return None
    shape = sight.shape()
    if not sight.attributes.get("allowzero", 0):
        target = [shape[at] if size == 0 and at < len(shape) else size for at, size in enumerate(target)]
    return (_step(sight, {"shape": target}, inputs=1),)


def _slice(sight: Sight) -> tuple[Step, ...] | None:
    given: dict[str, object] = {}
    for position, name in enumerate(("starts", "ends", "axes", "steps"), start=1):
        if sight.opset < 10:
            given[name] = sight.attributes.get(name)
        elif sight.has(position):
            given[name] = sight.known(position)
            if given[name] is None:
                return None
    return (_step(sight, given, inputs=1),)


def _split(sight: Sight) -> tuple[Step, ...] | None:
    axis = int(sight.attributes.get("axis", 0))  # type: ignore[call-overload]
    parts: object = sight.attributes.get("split")
    if sight.opset >= 13 and sight.has(1):
        parts = sight.known(1)
        if parts is None:
            return None
    count, size = len(sight.node.output), sight.shape()[axis]
    if parts is None:
        part = -(-size // count)
        parts = [max(0, min(part, size - part * position)) for position in range(count)]
    names = tuple(name or f"?unused{position}" for position, name in enumerate(sight.node.output))
    return (Step("Split", (sight.node.input[0],), names, {"axis": axis, "split": parts}),)


def _pad(sight: Sight) -> tuple[Step, ...] | None:
    rank = len(sight.shape())
    pads, value = sight.attributes.get("pads"), sight.attributes.get("value", 0.0)
    if sight.opset >= 11:
        pads = sight.known(1)
        if sight.has(2):
            fill = sight.known(2)
            if not fill:
                return None
            value = fill[0]
        if sight.has(3):
            axes = sight.known(3)
            if axes is None or pads is None:
                return None
            spread = [0] * 2 * rank
            for place, axis in enumerate(axes):
                at = int(axis) % rank
                spread[at], spread[at + rank] = int(pads[place]), int(pads[place + len(axes)])
            pads = spread
    if pads is None or (isinstance(value, int) and abs(value) > 2**53):
        return None
    given = {"pads": pads, "mode": sight.attributes.get("mode", "constant"), "value": value}
    return (_step(sight, given, inputs=1),)


def _upsample(sight: Sight) -> tuple[Step, ...] | None:
    scales = sight.attributes.get("scales") if sight.opset < 9 else sight.known(1)
    mode = str(sight.attributes.get("mode", "nearest"))
    if scales is None or mode not in ("nearest", "linear"):
        return None
    return (_step(sight, _old_resize(scales, mode), "Resize", inputs=1),)


def _old_resize(scales: object, mode: str) -> dict[str, object]:
    """Before opset 11 output element i came from element i/scale."""
    return {
        "scales": scales,
        "mode": mode,
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }


def _resize(sight: Sight) -> tuple[Step, ...] | None:
    shape = sight.shape()
    given: dict[str, object] = dict(sight.attributes)
    if sight.opset < 11:
        scales = sight.known(1)
        mode = str(given.get("mode", "nearest"))
        if scales is None or (mode == "nearest" and any(scale < 1 for scale in scales)):
            return None  # runtimes differ on which element a smaller nearest one is
        return (_step(sight, _old_resize(scales, mode), inputs=1),)
    coordinates = given.get("coordinate_transformation_mode", "half_pixel")
    if coordinates in ("tf_crop_and_resize", "tf_half_pixel_for_nn"):
        return None
    if given.pop("keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    axes = [int(axis) % len(shape) for axis in given.pop("axes", range(len(shape)))]  # type: ignore[attr-defined]
    for position, name in ((2, "scales"), (3, "sizes")):
        if sight.has(position) and sight.shape(position) != (0,):
            known = sight.known(position)
            if known is None or len(known) != len(axes):
                return None
            full: list[int | float] = list(shape) if name == "sizes" else [1.0] * len(shape)
            for axis, entry in zip(axes, known, strict=True):
                full[axis] = entry
            given[name] = full
    return (_step(sight, given, inputs=1),) if "scales" in given or "sizes" in given else None


def _cast(sight: Sight) -> tuple[Step, ...] | None:
    if sight.node.op_type == "CastLike":
        to = sight.values[sight.node.input[1]].dtype
    else:
        to = helper.tensor_dtype_to_np_dtype(int(sight.attributes["to"]))  # type: ignore[call-overload]
    if not {to.name, sight.values[sight.node.input[0]].dtype.name} <= PLAIN:
        return None
    return (_step(sight, {"to": to.name}, "Cast", inputs=1),)


def _gather(sight: Sight) -> tuple[Step, ...] | None:
    """One constant index is a Slice without its axis: x[:, 0]."""
    indices = sight.constants.get(sight.node.input[1])
    if indices is None or indices.shape != ():
        return None
    axis = int(sight.attributes.get("axis", 0))  # type: ignore[call-overload]
    index = int(indices)
    cut: dict[str, object] = {
        "starts": [index],
        "ends": [index + 1 if index != -1 else 2**31],
        "axes": [axis],
        "steps": [1],
    }
    return (
        Step("Slice", (sight.node.input[0],), ("?cut",), cut),
        Step("Squeeze", ("?cut",), (sight.node.output[0],), {"axes": [axis]}),
    )


_FORMS = {
    "Conv": _window,
    "ConvTranspose": _transposed_window,
    "MaxPool": _window,
    "AveragePool": _window,
    "BatchNormalization": _batch_normalization,
    "Dropout": _dropout,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Clip": _clip,
    "Squeeze": _squeeze,
    "Unsqueeze": _squeeze,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "ReduceMax": _reduce,
    "ReduceMin": _reduce,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Pad": _pad,
    "Upsample": _upsample,
    "Resize": _resize,
    "Cast": _cast,
    "CastLike": _cast,
    "Gather": _gather,
}
