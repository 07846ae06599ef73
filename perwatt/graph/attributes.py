"""The attributes of a node: typed access, and the rules that bring them into their one canonical form.

Each function named `complete_...` takes the attributes as given and the inputs, and returns every attribute of the
operator in canonical form: axes counted from the front, sizes resolved, one number per spatial axis.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from perwatt.errors import InvalidGraph
from perwatt.graph.graph import Attribute, Node, Value

Attributes = dict[str, Attribute]
Inputs = Sequence[Value | None]

INTEGER = {
    *("group", "transA", "transB", "ceil_mode", "count_include_pad", "size", "axis", "keepdims"),
    *("exclude_outside", "antialias", "select_last_index"),
}
INTEGERS = {"strides", "dilations", "pads", "kernel_shape", "shape", "axes", "perm", "starts", "ends", "steps"} | {
    *("split", "sizes", "splits", "output_padding"),
}
NUMBER = {"alpha", "beta", "gamma", "bias", "epsilon", "cubic_coeff_a", "extrapolation_value"}
NUMBERS = {"scales"}
TEXT = {"mode", "coordinate_transformation_mode", "nearest_mode", "approximate", "to", "activation"}
# Numbers that have the precision of the tensor, not of an ONNX attribute.
BOUND = {"min", "max", "value", "activation_alpha", "activation_beta"}


def integer(node: Node, name: str) -> int:
    """Return an attribute that is one whole number; raises InvalidGraph when it is missing or something else."""
    value = node.attributes.get(name)
    if not isinstance(value, int):
        raise refusal(node.operator, node.name, f"attribute {name} to be a whole number", repr(value))
    return value


def integers(node: Node, name: str) -> tuple[int, ...]:
    """Return an attribute that is a tuple of whole numbers; raises InvalidGraph when it is something else."""
    value = node.attributes.get(name)
    if not isinstance(value, tuple):
        raise refusal(node.operator, node.name, f"attribute {name} to be a tuple of whole numbers", repr(value))
    return tuple(int(number) for number in value)


def number(node: Node, name: str) -> float:
    """Return an attribute that is one real number; raises InvalidGraph when it is missing or something else."""
    value = node.attributes.get(name)
    if not isinstance(value, int | float):
        raise refusal(node.operator, node.name, f"attribute {name} to be a number", repr(value))
    return float(value)


def numbers(node: Node, name: str) -> tuple[float, ...]:
    """Return an attribute that is a tuple of real numbers; raises InvalidGraph when it is something else."""
    value = node.attributes.get(name)
    if not isinstance(value, tuple):
        raise refusal(node.operator, node.name, f"attribute {name} to be a tuple of numbers", repr(value))
    return tuple(float(number) for number in value)


def text(node: Node, name: str) -> str:
    """Return an attribute that is text; raises InvalidGraph when it is missing or something else."""
    value = node.attributes.get(name)
    if not isinstance(value, str):
        raise refusal(node.operator, node.name, f"attribute {name} to be text", repr(value))
    return value


def refusal(operator: str, name: str, expected: str, got: str) -> InvalidGraph:
    """Return the error for a node that breaks its operator's rule; without a name, `operators.make` says where."""
    where = f"{operator} node {name!r}: " if name else ""
    return InvalidGraph(f"{where}expected {expected}, got {got}; correct this node in the network")


def coerced(operator: str, given: Mapping[str, object]) -> Attributes:
    """Return attributes as plain Python values: lists become tuples, NumPy scalars become int and float.

    Reals are rounded to float32, which is what an ONNX file can hold. Raises InvalidGraph on a value of the wrong kind.
    """
    made: Attributes = {}
    for name, value in given.items():
        try:
            made[name] = _coerced(name, value)
        except (TypeError, ValueError) as error:
            raise refusal(operator, "", f"a usable attribute {name}", repr(value)) from error
    return made


def _coerced(name: str, value: object) -> Attribute:
    if value is None:
        return None
    if name in INTEGER:
        if int(value) != value:  # type: ignore[call-overload]
            raise ValueError(value)
        return int(value)  # type: ignore[call-overload, no-any-return]
    if name in INTEGERS:
        if not all(int(item) == item for item in value):  # type: ignore[attr-defined]
            raise ValueError(value)
        return tuple(int(item) for item in value)  # type: ignore[attr-defined]
    if name in NUMBER:
        return float(np.float32(value))  # type: ignore[arg-type]
    if name in NUMBERS:
        return tuple(float(np.float32(item)) for item in value)  # type: ignore[attr-defined]
    if name in BOUND:
        return float(value)  # type: ignore[arg-type]
    if name in TEXT:
        return str(np.dtype(value)) if name == "to" and not isinstance(value, str) else str(value)  # type: ignore[call-overload]
    raise ValueError(value)


def complete_nothing(attributes: Attributes, inputs: Inputs) -> Attributes:
    """Leave the attributes as they are: every default is fixed."""
    return attributes


def first(inputs: Inputs) -> Value:
    """Return the first input, which every operator here has; raises InvalidGraph when it is left out."""
    if not inputs or inputs[0] is None:
        raise InvalidGraph("a node: expected a first input, got none; correct this node in the network")
    return inputs[0]


def _axis(axis: Attribute, rank: int, what: str) -> int:
    if not isinstance(axis, int) or not -rank <= axis < max(rank, 1):
        raise refusal(what, "", f"axis from {-rank} to {rank - 1}", repr(axis))
    return axis % rank if rank else 0


def _axes(axes: Attribute, rank: int, what: str) -> tuple[int, ...]:
    if not isinstance(axes, tuple):
        raise refusal(what, "", "axes", repr(axes))
    found = tuple(_axis(int(axis), rank, what) for axis in axes)
    if len(set(found)) != len(found):
        raise refusal(what, "", "axes that differ", repr(axes))
    return found


def _whole(value: Attribute, what: str) -> tuple[int, ...]:
    if not isinstance(value, tuple):
        raise refusal(what, "", f"{what} to be a tuple of whole numbers", repr(value))
    return tuple(int(item) for item in value)


def complete_axis(attributes: Attributes, inputs: Inputs) -> Attributes:
    """Count the axis from the front (Softmax, LogSoftmax, Concat)."""
    return {**attributes, "axis": _axis(attributes["axis"], len(first(inputs).shape), "axis")}


def complete_flatten(attributes: Attributes, inputs: Inputs) -> Attributes:
    """Count Flatten's axis from the front; the rank itself is allowed (everything before it, 1 behind)."""
    axis, rank = attributes["axis"], len(first(inputs).shape)
    if not isinstance(axis, int) or not -rank <= axis <= rank:
        raise refusal("Flatten", "", f"axis from {-rank} to {rank}", repr(axis))
    return {**attributes, "axis": axis + rank if axis < 0 else axis}


def complete_window(attributes: Attributes, inputs: Inputs) -> Attributes:
    """Give strides, dilations and pads one number per spatial axis (Conv and the pools)."""
    value = first(inputs)
    rank = len(value.shape) - 2
    if rank < 1:
        raise refusal("a window", "", "an input of batch, channels and spatial axes", f"shape {value.shape}")
    kernel = attributes.get("kernel_shape")
    if kernel is None:
        weights = inputs[1] if len(inputs) > 1 else None
        if weights is None:
            raise refusal("a window", "", "kernel_shape", "none")
        kernel = weights.shape[2:]
    done = {**attributes, "kernel_shape": kernel}
    for name, default in (("strides", (1,) * rank), ("dilations", (1,) * rank), ("pads", (0,) * 2 * rank)):
        if done.get(name) is None:
            done[name] = default
    for name, length in (("kernel_shape", rank), ("strides", rank), ("dilations", rank), ("pads", 2 * rank)):
        entries = done[name]
        least = 0 if name == "pads" else 1
        if not isinstance(entries, tuple) or len(entries) != length or any(int(item) < least for item in entries):
            raise refusal("a window", "", f"{name} of {length} numbers from {least} up", repr(entries))
    return done


def complete_transposed_window(attributes: Attributes, inputs: Inputs) -> Attributes:
    """Complete ConvTranspose's window, and give output_padding one number per spatial axis."""
    done = complete_window(attributes, inputs)
    kernel, padding = _whole(done["kernel_shape"], "kernel_shape"), done["output_padding"]
    done["output_padding"] = (0,) * len(kernel) if padding is None else padding
    whole = _whole(done["output_padding"], "output_padding")
    if len(whole) != len(kernel) or min(whole) < 0:
        raise refusal("ConvTranspose", "", f"output_padding of {len(kernel)} numbers from 0 up", repr(padding))
    return done


def complete_reshape(attributes: Attributes, inputs: Inputs) -> Attributes:
    """Resolve the target: 0 copies the input's size, one -1 takes what is left."""
    value, shape = first(inputs), attributes["shape"]
    if not isinstance(shape, tuple):
        raise refusal("Reshape", "", "a target shape", repr(shape))
    target = [int(size) for size in shape]
    count = int(np.prod(value.shape))
    for position, size in enumerate(target):
        if size == 0 and count != 0:
            if position >= len(value.shape):
                raise refusal("Reshape", "", f"0 only where {value.shape} has an axis to copy", repr(shape))
            target[position] = value.shape[position]
    if target.count(-1) == 1:
        known = int(np.prod([size for size in target if size != -1]))
        if known == 0 or count % known:
            raise refusal("Reshape", "", f"a target that holds the {count} elements of {value.shape}", repr(shape))
        target[target.index(-1)] = count // known
    if any(size < 0 for size in target) or int(np.prod(target)) != count:
        raise refusal("Reshape", "", f"a target that holds the {count} elements of {value.shape}", repr(shape))
    return {"shape": tuple(target)}


def complete_transpose(attributes: Attributes, inputs: Inputs) -> Attributes:
    """Spell out the permutation; none given means all axes reversed."""
    rank, perm = len(first(inputs).shape), attributes["perm"]
    if perm is None:
        return {"perm": tuple(reversed(range(rank)))}
    if not isinstance(perm, tuple) or sorted(int(axis) for axis in perm) != list(range(rank)):
        raise refusal("Transpose", "", f"a permutation of {rank} axes", repr(perm))
    return attributes


def complete_squeeze(attributes: Attributes, inputs: Inputs) -> Attributes:
    """Spell out the axes that vanish; none given means every axis of size 1."""
    shape, axes = first(inputs).shape, attributes["axes"]
    if axes is None:
        return {"axes": tuple(axis for axis, size in enumerate(shape) if size == 1)}
    found = tuple(sorted(_axes(axes, len(shape), "Squeeze")))
    if any(shape[axis] != 1 for axis in found):
        raise refusal("Squeeze", "", f"axes of size 1 of {shape}", repr(axes))
    return {"axes": found}


def complete_unsqueeze(attributes: Attributes, inputs: Inputs) -> Attributes:
    """Count the new axes from the front of the result."""
    axes = attributes["axes"]
    grown = len(first(inputs).shape) + (len(axes) if isinstance(axes, tuple) else 0)
    return {"axes": tuple(sorted(_axes(axes, grown, "Unsqueeze")))}


def complete_reduce(attributes: Attributes, inputs: Inputs) -> Attributes:
    """Spell out the axes that are summed up; none given means all."""
    rank, axes = len(first(inputs).shape), attributes["axes"]
    found = tuple(range(rank)) if axes is None else tuple(sorted(_axes(axes, rank, "a reduction")))
    return {**attributes, "axes": found}


def complete_pad(attributes: Attributes, inputs: Inputs) -> Attributes:
    """Check that there are two pads per axis; a constant that is padded with takes the tensor's precision."""
    value, pads = first(inputs), attributes["pads"]
    if not isinstance(pads, tuple) or len(pads) != 2 * len(value.shape):
        raise refusal("Pad", "", f"{2 * len(value.shape)} pads for shape {value.shape}", repr(pads))
    if attributes["mode"] not in ("constant", "reflect", "edge", "wrap"):
        raise refusal("Pad", "", "mode constant, reflect, edge or wrap", repr(attributes["mode"]))
    return {**attributes, "value": _rounded(attributes["value"], value.dtype)}


def complete_clip(attributes: Attributes, inputs: Inputs) -> Attributes:
    """Give the bounds the tensor's precision."""
    dtype = first(inputs).dtype
    return {name: _rounded(attributes[name], dtype) for name in ("min", "max")}


def _rounded(bound: Attribute, dtype: np.dtype) -> float:
    if not isinstance(bound, int | float):
        raise refusal("a bound", "", "a number", repr(bound))
    if np.isinf(bound) or np.issubdtype(dtype, np.integer):
        return float(bound)
    return float(np.asarray(bound).astype(dtype))


def complete_slice(attributes: Attributes, inputs: Inputs) -> Attributes:
    """Clamp starts and ends to the axis; an end before the first element (backwards) is written -(size + 1)."""
    shape = first(inputs).shape
    starts, ends = _whole(attributes["starts"], "Slice starts"), _whole(attributes["ends"], "Slice ends")
    axes = tuple(range(len(starts))) if attributes["axes"] is None else attributes["axes"]
    steps = (1,) * len(starts) if attributes["steps"] is None else _whole(attributes["steps"], "Slice steps")
    found = _axes(axes, len(shape), "Slice")
    if not len(starts) == len(ends) == len(found) == len(steps) or 0 in steps:
        got = f"{starts}, {ends}, {axes} and {steps}"
        raise refusal("Slice", "", "as many starts, ends, axes and steps, no step of 0", got)
    rows = []
    for begin, stop, axis, stride in sorted(zip(starts, ends, found, steps, strict=True), key=lambda row: row[2]):
        size = shape[axis]
        begin, stop = (begin + size if begin < 0 else begin), (stop + size if stop < 0 else stop)
        if stride > 0:
            begin, stop = min(max(begin, 0), size), min(max(stop, 0), size)
        else:
            begin, stop = min(max(begin, 0), size - 1), min(max(stop, -1), size - 1)
            stop = -(size + 1) if stop == -1 else stop
        rows.append((begin, stop, axis, stride))
    columns = tuple(zip(*rows, strict=True)) or ((), (), (), ())
    return dict(zip(("starts", "ends", "axes", "steps"), columns, strict=True))


def complete_split(attributes: Attributes, inputs: Inputs) -> Attributes:
    """Count the axis from the front and check that the parts make up the whole."""
    shape, split = first(inputs).shape, attributes["split"]
    axis = _axis(attributes["axis"], len(shape), "Split")
    if not isinstance(split, tuple) or any(int(size) < 0 for size in split) or sum(map(int, split)) != shape[axis]:
        raise refusal("Split", "", f"parts that add up to {shape[axis]}", repr(split))
    return {"axis": axis, "split": split}


def complete_resize(attributes: Attributes, inputs: Inputs) -> Attributes:
    """Give one size and one scale per axis: each follows from the other where only one is given.

    Given scales are kept even where size/input differs from them: they steer where samples are taken (ONNX Resize).
    """
    shape = first(inputs).shape
    sizes, scales = attributes["sizes"], attributes["scales"]
    if sizes is None and isinstance(scales, tuple) and len(scales) == len(shape):
        # ONNX multiplies in float32: 10 x 0.7 is 7 there, and 6 when the float32 nearest to 0.7 is taken exactly
        pairs = zip(shape, np.array(scales, np.float32), strict=True)
        sizes = tuple(int(np.floor(np.float32(size) * scale)) for size, scale in pairs)
    if sizes is None or len(whole := _whole(sizes, "Resize sizes")) != len(shape) or min(whole, default=1) < 1:
        raise refusal("Resize", "", f"{len(shape)} sizes or scales", f"sizes {sizes!r}, scales {scales!r}")
    if scales is None:
        scales = tuple(float(np.float32(to / size)) for to, size in zip(whole, shape, strict=True))
    if not isinstance(scales, tuple) or len(scales) != len(shape):
        raise refusal("Resize", "", f"{len(shape)} scales", repr(scales))
    return {**attributes, "sizes": whole, "scales": scales}


def complete_cast(attributes: Attributes, inputs: Inputs) -> Attributes:
    """Name the element type as NumPy does: float32, int64, bfloat16."""
    if attributes["to"] is None:
        raise refusal("Cast", "", "the element type `to`", "none")
    return attributes
