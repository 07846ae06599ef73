"""The ONNX project's own test cases on perwatt's engine: which pass, which are refused and why, which are wrong.

    python benchmarks/backend_suite.py            writes records/backend_suite.md

Every case of onnx.backend.test whose operators are all in perwatt's table: the single-operator ("node") cases, and the
whole models that come with the onnx package. Each is compiled as it is; where that is refused, once more with every
input but the first as a constant, as a trained network has it (weights, the target of a Reshape). Answers are compared
as the project's runner does, with the case's own tolerances. Models of an opset before 7 pass ONNX's converter first.
"""

import argparse
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx.backend.test
from onnx import numpy_helper, version_converter

import perwatt
from perwatt.errors import PerwattError
from perwatt.graph import OPERATORS

REPORT = Path(__file__).parent.parent / "records" / "backend_suite.md"
DATA = Path(onnx.backend.test.__file__).parent / "data"
MODEL_KINDS = ("simple", "pytorch-operator", "pytorch-converted")
SEVERAL = "several operators"
# Read away before anything is planned: they need no row in the table.
FOLDED = {"Constant", "ConstantOfShape", "Shape", "Identity"}
Verdict = Literal["passed", "passed with constants", "refused", "failed"]
VERDICTS: tuple[Verdict, ...] = ("passed", "passed with constants", "refused", "failed")


@dataclass(frozen=True)
class Case:
    """One case: its operator, or what kind of model it is, and pairs of (inputs, expected outputs) in order."""

    name: str
    operator: str
    model: onnx.ModelProto
    data: tuple[tuple[list[Any], list[Any]], ...]
    rtol: float
    atol: float


@dataclass(frozen=True)
class Result:
    """What became of a case; `reason` is one line for a refusal or a wrong answer."""

    name: str
    operator: str
    verdict: Verdict
    reason: str = ""


def operator_of(model: onnx.ModelProto) -> str | None:
    """Return the operator of a model with one node, SEVERAL for more; None when one is not in perwatt's table."""
    operators = [node.op_type for node in model.graph.node if not node.domain or node.domain == "ai.onnx"]
    if len(operators) < len(model.graph.node) or not set(operators) <= set(OPERATORS) | FOLDED:
        return None
    if not set(operators) & set(OPERATORS):
        return None
    return operators[0] if len(operators) == 1 else SEVERAL


def node_cases() -> Iterator[Case]:
    """Yield the single-operator cases, and the same spelt out in simpler operators."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    for case in found:
        operator = operator_of(case.model)
        if operator is not None:
            data = tuple((list(given), list(wanted)) for given, wanted in case.data_sets)
            yield Case(case.name, operator, case.model, data, case.rtol, case.atol)


def model_cases() -> Iterator[Case]:
    """Yield the models whose inputs and outputs lie beside them."""
    for kind in MODEL_KINDS:
        for folder in sorted(path for path in (DATA / kind).iterdir() if (path / "model.onnx").exists()):
            model = _modern(onnx.load(folder / "model.onnx"))
            operator = operator_of(model)
            if operator is None:
                continue
            data = []
            for where in sorted(folder.glob("test_data_set_*")):
                data.append((_tensors(where, "input"), _tensors(where, "output")))
            yield Case(folder.name, operator, model, tuple(data), 1e-3, 1e-7)


def light_cases() -> Iterator[Case]:
    """Yield the nine whole networks with weights made up on the spot, on the input the project's runner uses."""
    for path in sorted((DATA / "light").glob("light_*.onnx")):
        model = onnx.load(path)
        known = {entry.name for entry in model.graph.initializer}
        (entry,) = (entry for entry in model.graph.input if entry.name not in known)
        shape = tuple(dim.dim_value or 1 for dim in entry.type.tensor_type.shape.dim)
        ramp = (np.arange(np.prod(shape)).reshape(shape) / np.prod(shape)).astype(np.float32)
        wanted = numpy_helper.to_array(onnx.load_tensor(str(path.with_name(f"{path.stem}_output_0.pb"))))
        yield Case(path.stem, "whole networks", model, (([ramp], [wanted]),), 1e-3, 1e-7)


def _modern(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model of an opset before 7, which perwatt does not read, as ONNX's own converter brings it up."""
    opset = next((entry.version for entry in model.opset_import if not entry.domain), 1)
    if opset >= 7:
        return model
    try:
        return version_converter.convert_version(model, 13)
    except RuntimeError:  # a form that the converter does not know: perwatt will say what it thinks of it
        return model


def _tensors(folder: Path, kind: str) -> list[Any]:
    files = sorted(folder.glob(f"{kind}_*.pb"), key=lambda path: int(path.stem.rpartition("_")[2]))
    found: list[Any] = []
    for file in files:
        try:
            found.append(numpy_helper.to_array(onnx.load_tensor(str(file))))
        except Exception as error:  # noqa: BLE001 - a sequence or an optional: no tensor, so perwatt will refuse it
            found.append(error)
    return found


def run_case(case: Case) -> Result:
    """Compile and run one case. What perwatt raises on purpose is a refusal, all else a failure."""
    try:
        try:
            return _judged(case, case.model, "passed")
        except PerwattError as error:
            known = constant_operands(case)
            if known is None:
                return Result(case.name, case.operator, "refused", _line(error))
            try:
                return _judged(known, known.model, "passed with constants")
            except PerwattError as again:
                return Result(case.name, case.operator, "refused", _line(again))
    except AssertionError as error:
        return Result(case.name, case.operator, "failed", _line(error))
    except Exception as error:  # noqa: BLE001 - the point of the suite: whatever a case brings to light
        return Result(case.name, case.operator, "failed", f"{type(error).__name__}: {_line(error)}")


def _judged(case: Case, model: onnx.ModelProto, verdict: Verdict) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = perwatt.compile(model.SerializeToString(), tune="estimate")
    initial = {entry.name for entry in model.graph.initializer}
    names = [entry.name for entry in model.graph.input if entry.name not in initial]
    for given, wanted in case.data:
        feeds = dict(zip(names, map(_array, given), strict=True))
        # An input that nothing reads is none of the network's.
        got = list(compiled.run({name: feeds[name] for name in compiled.inputs}).values())
        assert len(got) == len(wanted), f"{len(got)} outputs, expected {len(wanted)}"
        for one, other in zip(got, map(_array, wanted), strict=True):
            assert one.shape == other.shape, f"shape {one.shape}, expected {other.shape}"
            assert one.dtype == other.dtype, f"{one.dtype}, expected {other.dtype}"
            np.testing.assert_allclose(one, other, rtol=case.rtol, atol=case.atol)
    return Result(case.name, case.operator, verdict)


def constant_operands(case: Case) -> Case | None:
    """Return the case with all inputs but the first as constants, None when there are none or the data differ."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    initial = {entry.name for entry in model.graph.initializer}
    names = [entry.name for entry in model.graph.input if entry.name not in initial]
    if len(names) < 2 or len(case.data) != 1:
        return None
    given, wanted = case.data[0]
    for name, value in zip(names[1:], given[1:], strict=True):
        if isinstance(value, onnx.TensorProto):
            value = numpy_helper.to_array(value)
        if isinstance(value, np.generic):
            value = np.asarray(value)
        if not isinstance(value, np.ndarray):
            return None
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    kept = [entry for entry in model.graph.input if entry.name not in names[1:]]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return Case(case.name, case.operator, model, ((given[:1], wanted),), case.rtol, case.atol)


def _array(value: Any) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def run_all(progress: Callable[[Result], None] = lambda result: None) -> list[Result]:
    """Run every case."""
    results = []
    for case in (*node_cases(), *model_cases(), *light_cases()):
        results.append(run_case(case))
        progress(results[-1])
    return results


def by_operator(results: list[Result]) -> dict[str, Counter[str]]:
    """Return how many cases of each operator came to each verdict."""
    table: dict[str, Counter[str]] = {}
    for result in results:
        table.setdefault(result.operator, Counter())[result.verdict] += 1
    return dict(sorted(table.items(), key=lambda item: (item[0][0].islower(), item[0])))


def report(results: list[Result]) -> str:
    """Return the table as Markdown."""
    total = Counter(result.verdict for result in results)
    lines = [
        "# The ONNX project's own test cases",
        "",
        f"`python benchmarks/backend_suite.py`, onnx {onnx.__version__}: the cases of onnx.backend.test whose "
        "operators are all in perwatt's table. Refused as it is, a case is tried once more with every input but the "
        "first as a constant, as trained networks have them.",
        "",
        f"| operator | {' | '.join(VERDICTS)} |",
        "|---|" + "---|" * len(VERDICTS),
    ]
    for operator, counts in by_operator(results).items():
        lines.append(f"| {operator} | {' | '.join(str(counts[verdict]) for verdict in VERDICTS)} |")
    lines += [f"| **all** | {' | '.join(f'**{total[verdict]}**' for verdict in VERDICTS)} |", ""]
    for verdict in ("failed", "refused"):
        chosen = [result for result in results if result.verdict == verdict]
        if chosen:
            lines += [f"## {verdict.capitalize()}", ""]
            lines += [f"- {r.operator}: {r.name}: {r.reason}" for r in sorted(chosen, key=lambda r: r.operator)]
            lines.append("")
    return "\n".join(lines)


def committed(path: Path = REPORT) -> dict[str, dict[str, int]]:
    """Return the committed table: operator -> verdict -> count; empty when there is none."""
    if not path.exists():
        return {}
    table = {}
    for line in path.read_text().splitlines():
        cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 1 + len(VERDICTS) and cells[1].isdigit():
            table[cells[0]] = dict(zip(VERDICTS, map(int, cells[1:]), strict=True))
    return table


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=REPORT)
    where = parser.parse_args().output
    results = run_all(lambda r: print(r.verdict, r.operator, r.name, r.reason) if r.verdict == "failed" else None)
    where.parent.mkdir(exist_ok=True)
    where.write_text(report(results))
    print(Counter(result.verdict for result in results))


if __name__ == "__main__":
    main()
