"""The batch: an ONNX file with every size fixed at the batch that is wanted.

The batch is axis 0 of the inputs that a caller feeds. What a file has fixed for its own batch (the target of a Reshape
or a Resize) is corrected; everything else stays as its author wrote it.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import EncodeError
from onnx import helper, numpy_helper

from perwatt.errors import InputError, NetworkError
from perwatt.graph.graph import Value
from perwatt.graph.onnx_file import domain_of, load
from perwatt.graph.onnx_walk import Amend, Walk, data_inputs, walk

NEWEST_WITH_LISTED_WEIGHTS = 4  # from this file version on, weights need not be listed among the inputs


def with_batch(source: str | Path | bytes, batch: int) -> bytes:
    """Return the network as its author wrote it, with every size static at this batch.

    Weights from other files are inside, and every tensor's shape is noted. Raises InputError when the batch is below 1,
    NetworkError when the file cannot be used or holds something that is fixed to another batch.
    """
    model, walked = at_batch(source, batch)
    del model.graph.value_info[:]
    outputs = {entry.name for entry in model.graph.output}
    read = {name for node in model.graph.node for name in node.input} | outputs
    for position in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[position].name not in read:  # runtimes warn of each
            del model.graph.initializer[position]
    made = dict.fromkeys(name for node in model.graph.node for name in node.output if name)
    model.graph.value_info.extend(
        _typed(walked.values[name]) for name in made if name in walked.values and name not in outputs
    )
    for entry in model.graph.output:
        entry.type.CopyFrom(_typed(walked.values[entry.name]).type)
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise NetworkError(
            f"the network: expected less than 2 GB with its weights inside, got more ({error})"
        ) from error


def at_batch(source: str | Path | bytes, batch: int | None) -> tuple[onnx.ModelProto, Walk]:
    """Return a file's model with static sizes at this batch, and the walk through it.

    None keeps the batch that the file fixes; one that it leaves free becomes 1. Raises InputError, NetworkError.
    """
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int | np.integer) or batch < 1):
        raise InputError(f"batch: expected a whole number from 1 up, got {batch!r}; use 1 for one image at a time")
    model = load(source)
    fixed = _fixed_batch(model)
    if fixed is None or batch is None or batch == fixed:
        _set_inputs(model, batch or fixed or 1, fixed)
        return _without_listed_weights(model), walk(model)
    _set_inputs(model, fixed, fixed)
    before = walk(model)
    _set_inputs(model, int(batch), fixed)
    _without_listed_weights(model)
    return model, walk(model, _corrections(model, before, fixed, int(batch)), before.constants)


def _fixed_batch(model: onnx.ModelProto) -> int | None:
    """Return the batch that the file fixes, None when it leaves it free."""
    for entry in data_inputs(model):
        dims = _dims(entry)
        if len(dims) > 1:
            return dims[0].dim_value if dims[0].dim_value > 0 else None
    return None


def _dims(entry: onnx.ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension]:
    if not entry.type.HasField("tensor_type") or entry.type.tensor_type.elem_type == 0:
        raise NetworkError(f"input {entry.name!r}: expected a tensor, got something else; export the network again")
    if not entry.type.tensor_type.HasField("shape"):
        raise NetworkError(f"input {entry.name!r}: expected a shape, got none; export the network with a fixed size")
    return list(entry.type.tensor_type.shape.dim)


def _set_inputs(model: onnx.ModelProto, batch: int, fixed: int | None) -> None:
    """Write the batch into axis 0 of the inputs; raises NetworkError when another dimension is free."""
    free = next((dims[0].dim_param for dims in map(_dims, data_inputs(model)) if len(dims) > 1), "")
    for entry in data_inputs(model):
        dims = _dims(entry)
        for axis, dim in enumerate(dims):
            batched = dim.dim_value < 1 or (len(dims) > 1 and dim.dim_value == fixed)
            if (axis == 0 and batched) or (free and dim.dim_param == free):
                dim.dim_value = batch
            elif dim.dim_value < 1:
                name = f" ({dim.dim_param!r})" if dim.dim_param else ""
                got = f"size {dim.dim_value} for" if dim.HasField("dim_value") else "a free"
                raise NetworkError(
                    f"input {entry.name!r}: expected dimension 0, the batch, to be the only free one, got {got} "
                    f"dimension {axis}{name}; export the network with a fixed size"
                )


def _without_listed_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take weights out of the inputs, where old files list them: a runtime may else not treat them as constant."""
    kept = data_inputs(model)
    if len(kept) != len(model.graph.input):
        entries = [onnx.ValueInfoProto.FromString(entry.SerializeToString()) for entry in kept]
        del model.graph.input[:]
        model.graph.input.extend(entries)
    model.ir_version = max(model.ir_version, NEWEST_WITH_LISTED_WEIGHTS)
    return model


def _corrections(model: onnx.ModelProto, before: Walk, old: int, new: int) -> Amend:
    """Return what looks at each node before the walk at the new batch, and corrects a target made for the old one."""
    names = {name for node in model.graph.node for name in (*node.input, *node.output)}

    def amend(
        node: onnx.NodeProto, values: Mapping[str, Value], constants: Mapping[str, np.ndarray]
    ) -> tuple[str, np.ndarray] | None:
        place = {"Reshape": 1, "Resize": 3}.get(node.op_type)
        if place is None or domain_of(node) or len(node.input) <= place or node.output[0] not in before.values:
            return None
        target, then = constants.get(node.input[place]), before.constants.get(node.input[place])
        if target is None or then is None or not np.array_equal(target, then):
            return None  # it follows from the batch by itself
        read, made = before.values[node.input[0]].shape, before.values[node.output[0]].shape
        axis = _scaled_axis(read, values[node.input[0]].shape, old, new)
        if axis is None or len(made) != target.size:
            return None
        at = _axis_to_correct(target.tolist(), read, made, axis, old)
        if at is None:
            return None
        corrected = target.copy()
        corrected[at] = made[at] // old * new
        name = f"{node.input[place]}_batch_{new}"
        while name in names:
            name += "_"
        names.add(name)
        model.graph.initializer.append(numpy_helper.from_array(corrected, name))
        node.input[place] = name
        return name, corrected

    return amend


def _scaled_axis(then: tuple[int, ...], now: tuple[int, ...], old: int, new: int) -> int | None:
    """Return the one axis that has grown with the batch, None when there is none."""
    if len(then) != len(now):
        return None
    grown = [axis for axis, (size, other) in enumerate(zip(then, now, strict=True)) if size != other]
    return grown[0] if len(grown) == 1 and then[grown[0]] * new == now[grown[0]] * old else None


def _axis_to_correct(
    target: list[int], read: tuple[int, ...], made: tuple[int, ...], axis: int, old: int
) -> int | None:
    """Return the place in a target that holds the old batch (or a multiple of it), None when the target serves.

    0 copies an axis and -1 takes what is left. A -1 that was the batch goes on being it; one that was not would swallow
    the new batch and mix images: [1, -1] for one image must be [48, -1] for 48.
    """
    if -1 in target and made[target.index(-1)] == old and target[0] != old:
        return None
    places = [axis, *(place for place, size in enumerate(made) if size == read[axis])] if axis else [0]
    for place in places:
        if place < len(target):
            if target[place] in (0, -1):
                return None
            if made[place] % old == 0:
                return place
    return None


def _typed(value: Value) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
