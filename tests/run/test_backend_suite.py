"""The ONNX project's own cases: none may give a wrong answer, and no fewer may pass than the committed table says."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def suite() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import backend_suite

        yield backend_suite
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.mark.slow
def test_no_case_is_wrong_and_as_many_pass_as_before(suite: ModuleType) -> None:
    results = suite.run_all()
    wrong = [f"{r.operator} {r.name}: {r.reason}" for r in results if r.verdict == "failed"]
    assert not wrong, "\n".join(wrong)
    table, now = suite.committed(), suite.by_operator(results)
    assert table, "records/backend_suite.md is missing: python benchmarks/backend_suite.py"
    if f"onnx {onnx.__version__}:" not in suite.REPORT.read_text():
        pytest.skip("the committed table is of other cases: another version of onnx")
    fewer = {}
    for operator, counts in table.items():
        if operator != "all":
            before = counts["passed"] + counts["passed with constants"]
            after = now[operator]["passed"] + now[operator]["passed with constants"]
            if after < before or now[operator]["passed"] < counts["passed"]:
                fewer[operator] = (counts, dict(now[operator]))
    assert not fewer, f"fewer pass than records/backend_suite.md says: {fewer}"


def test_the_committed_table_has_no_wrong_answer(suite: ModuleType) -> None:
    table = suite.committed()
    assert table["all"]["failed"] == 0
    assert table["all"]["passed"] > 300
    parts = [counts for operator, counts in table.items() if operator != "all"]
    assert all(sum(part[verdict] for part in parts) == table["all"][verdict] for verdict in suite.VERDICTS)


def test_a_wrong_answer_would_be_seen(suite: ModuleType) -> None:
    from onnx import TensorProto, helper

    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    x = np.array([[-1, 0, 2]], np.float32)
    for wanted, verdict in (([[0, 0, 2]], "passed"), ([[0, 0, 2.1]], "failed"), ([[0, 0]], "failed")):
        data = (([x], [np.array(wanted, np.float32)]),)
        assert suite.run_case(suite.Case("case", "Relu", model, data, 1e-3, 1e-7)).verdict == verdict
    late = suite.Case("case", "Relu", model, (([x], [np.array([[0, 0, 2]], np.float64)]),), 1e-3, 1e-7)
    assert suite.run_case(late).verdict == "failed"
