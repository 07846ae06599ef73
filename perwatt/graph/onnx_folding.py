"""Folding: what a node makes when everything it reads is known before the network runs."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from perwatt.errors import NetworkError

# Their result changes from run to run, so it cannot be known before.
RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}


def array_of(tensor: onnx.TensorProto) -> np.ndarray:
    """Return a tensor's numbers; raises NetworkError when there are more or fewer of them than its shape says."""
    try:
        if min(tensor.dims, default=0) < 0:
            raise ValueError("a negative size")
        return np.asarray(numpy_helper.to_array(tensor))
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise NetworkError(
            f"weights {tensor.name!r}: expected the numbers of shape {tuple(tensor.dims)}, got others "
            f"({' '.join(str(error).split())}); export or download the network again"
        ) from error


def folded(node: onnx.NodeProto, arrays: Sequence[np.ndarray | None], opset: int) -> tuple[np.ndarray, ...] | None:
    """Return the outputs of a node of ONNX's own domain for these inputs, or None when it cannot be run here."""
    if node.op_type in RANDOM or any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
        return None
    if node.op_type == "ConstantOfShape":  # a view of one number, however large the shape
        value = next((array_of(attribute.t) for attribute in node.attribute if attribute.name == "value"), None)
        fill = np.zeros(1, np.float32) if value is None else value
        shape = tuple(int(size) for size in arrays[0].reshape(-1)) if arrays and arrays[0] is not None else (-1,)
        return None if min(shape, default=0) < 0 else (np.broadcast_to(fill.reshape(-1)[:1].reshape(()), shape),)
    names = [f"i{position}" if array is not None else "" for position, array in enumerate(arrays)]
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.domain = ""
    del copy.input[:]
    copy.input.extend(names)
    del copy.output[:]
    copy.output.extend(f"o{position}" for position in range(len(node.output)))
    given = {name: array for name, array in zip(names, arrays, strict=True) if array is not None}
    graph = helper.make_graph(
        [copy],
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in given.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in copy.output],
    )
    try:
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        made = ReferenceEvaluator(model).run(None, given)
    except Exception:  # noqa: BLE001 - whatever the reference cannot run stays a node, which is always right
        return None
    if not all(isinstance(array, np.ndarray | np.generic) for array in made):
        return None
    return tuple(np.asarray(array) for array in made)
