"""The ONNX project's own cases for every operator of the table: read, written anew, run, compared with the expected."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_oracles import run_onnxruntime, run_reference, structure

from perwatt.errors import NetworkError
from perwatt.graph import OPERATORS, read, unsupported, write
from perwatt.graph.onnx_writer import STEERING

pytestmark = pytest.mark.slow
STEERED = {*STEERING, "Upsample", "Dropout", "Gather"}  # what these read behind the first input is a constant here
# Cases that a Graph cannot hold, and why. Everything else among the table's operators must pass.
BEYOND = {
    "no tensor": ("identity_sequence", "identity_opt"),
    "size 0": ("empty_set", "reshape_allowzero_reordered", "split_zero_size"),
}


def array(value: object) -> np.ndarray:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value)


def cases() -> Iterator[object]:
    from onnx.backend.test.case.node import collect_testcases

    for case in collect_testcases(None):
        nodes = case.model.graph.node
        if nodes and {node.op_type for node in nodes} <= {*OPERATORS, "Upsample", "CastLike", "Constant"}:
            yield case


def with_constants(model: onnx.ModelProto, given: list[object]) -> onnx.ModelProto:
    """Return the model with its steering inputs as constants, which the suite feeds."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names = [entry.name for entry in model.graph.input]
    steered = {name for node in copy.graph.node if node.op_type in STEERED for name in node.input[1:] if name in names}
    for name in sorted(steered):
        copy.graph.initializer.append(numpy_helper.from_array(array(given[names.index(name)]), name))
    return copy


def run_either(
    model: bytes, feeds: dict[str, np.ndarray], expected: list[np.ndarray], case: object
) -> list[np.ndarray]:
    """Return ONNX Runtime's answer, or the reference's for what ONNX Runtime cannot run or answers otherwise."""
    try:
        got = run_onnxruntime(model, feeds)
    except Exception:  # noqa: BLE001 - ONNX Runtime raises a class of its own for each kind of failure
        return run_reference(model, feeds)
    return got if agree(got, expected, case) else run_reference(model, feeds)


def agree(got: list[np.ndarray], expected: list[np.ndarray], case: object) -> bool:
    return all(
        left.shape == right.shape
        and left.dtype == right.dtype
        and np.allclose(left.astype(np.float64), right.astype(np.float64), case.rtol, case.atol, equal_nan=True)
        for left, right in zip(got, expected, strict=True)
    )


@pytest.mark.filterwarnings("ignore")
def test_every_case_of_the_tables_operators_keeps_its_meaning() -> None:
    faults, passed, foreign, beyond = [], Counter[str](), Counter[str](), 0
    for case in cases():
        operator = case.model.graph.node[0].op_type
        inputs, outputs = case.data_sets[0]
        model = with_constants(case.model, inputs)
        excused = any(word in case.name for words in BEYOND.values() for word in words)
        try:
            graph = read(model.SerializeToString())
        except NetworkError as error:
            beyond += 1
            if not excused:
                faults.append(f"{case.name}: {error}")
            continue
        if unsupported(graph):
            foreign[operator] += 1
            continue
        names = [entry.name for entry in case.model.graph.input]
        feeds = {name: array(inputs[names.index(name)]) for name in graph.inputs}
        expected = [array(value) for value in outputs]
        again = write(graph)
        onnx.checker.check_model(again, full_check=True)
        if structure(read(again)) != structure(graph):
            faults.append(f"{case.name}: reading what was written gives another structure")
        if not agree(run_either(again, feeds, expected, case), expected, case):
            faults.append(f"{case.name}: other numbers")
        if [(graph.values[name].shape, graph.values[name].dtype) for name in graph.outputs] != [
            (value.shape, value.dtype) for value in expected
        ]:
            faults.append(f"{case.name}: other shapes")
        passed[operator] += 1
    assert faults == []
    assert sum(passed.values()) >= 400  # so that a change of the suite cannot empty this test
    # What stays foreign: training modes, masks and indices as outputs, crops, the 8-, 4- and 2-bit floats and integers.
    assert set(foreign) <= {"BatchNormalization", "Cast", "CastLike", "Dropout", "MaxPool", "Resize"}, foreign
    assert beyond <= 20
