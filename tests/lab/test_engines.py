"""Each rival, run in its own process, computes what ONNX Runtime computes with its optimisations off."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest
from onnx.reference.op_run import OpRun
from small_network import CLASSES, INPUT_SHAPE, small_network

from perwatt.errors import EngineMissing, EngineRefused
from perwatt.lab.engine import Job, Precision
from perwatt.lab.engines import ENGINES
from perwatt.lab.process import BlockRequest, BlockResult, Started, Worker, harness_cost_s

# The longest sum has 864 terms; rounding errors grow with its root, and three layers follow one another.
FP32_TOLERANCE = 3 * np.sqrt(864) * np.finfo(np.float32).eps
LIBRARIES = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "ncnn": "ncnn",
    "torch": "torch",
    "reference": "onnxruntime",
    "perwatt": "llvmlite",
}


class LRN(OpRun):
    """Local response normalisation in float64: onnx.reference 1.23 normalises as many channels as there are images."""

    op_domain = ""

    def _run(
        self, x: np.ndarray, alpha: float = 0, beta: float = 0, bias: float = 0, size: int = 1
    ) -> tuple[np.ndarray]:
        squares = np.pad(x.astype(np.float64) ** 2, ((0, 0), ((size - 1) // 2, size // 2), (0, 0), (0, 0)))
        total = sum(squares[:, at : at + x.shape[1]] for at in range(size))
        return ((x / (bias + alpha / size * total) ** beta).astype(x.dtype),)


class Case:
    """The small network at one batch, with two input batches, on disk."""

    def __init__(self, folder: Path, batch: int) -> None:
        self.model = small_network(batch)
        self.shape = (batch, *INPUT_SHAPE)
        self.model_path, self.inputs_path = folder / f"{batch}.onnx", folder / f"{batch}.npy"
        onnx.save(self.model, self.model_path)
        self.inputs = np.random.default_rng(batch).normal(size=(2, *self.shape)).astype(np.float32)
        np.save(self.inputs_path, self.inputs)

    def job(self, precision: Precision = "fp32", patience_s: float = 0.0) -> Job:
        return Job(str(self.model_path), "image", self.shape, "label", precision, 2, patience_s=patience_s)

    def run(self, engine: str, precision: Precision = "fp32", patience_s: float = 0.0) -> tuple[Started, BlockResult]:
        if not importlib.util.find_spec(LIBRARIES[engine]):
            pytest.skip(f"{engine} is not installed")
        with Worker(engine, self.job(precision, patience_s), self.inputs_path) as worker:
            return worker.start(300), worker.block(BlockRequest(0.0, 6, 6, 1, (3, 4), 1))


@pytest.fixture(scope="module", params=[1, 3], ids=["batch1", "batch3"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("small"), request.param)


@pytest.fixture(scope="module")
def reference(case: Case) -> list[np.ndarray]:
    """The small network's outputs for both inputs, by onnx.reference in Python."""
    session = onnx.reference.ReferenceEvaluator(case.model, new_ops=[LRN])
    return [session.run(None, {"image": images})[0] for images in case.inputs]


def relative_error(result: BlockResult, reference: list[np.ndarray]) -> float:
    assert set(result.inputs.values()) == {0, 1}
    return max(
        float(np.linalg.norm(result.outputs[run] - reference[index]) / np.linalg.norm(reference[index]))
        for run, index in result.inputs.items()
    )


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["reference", "perwatt", "onnxruntime", "openvino", "ncnn", "torch"])
def test_a_rival_computes_the_network_in_fp32(engine: str, case: Case, reference: list[np.ndarray]) -> None:
    started, result = case.run(engine)
    assert started.loaded.precision == "fp32"
    assert started.loaded.version
    assert result.outputs[3].shape == (case.shape[0], CLASSES)
    assert relative_error(result, reference) < FP32_TOLERANCE


@pytest.mark.slow
def test_torch_compiles_when_there_is_time_and_reports_every_way(case: Case, reference: list[np.ndarray]) -> None:
    if case.shape[0] > 1:
        pytest.skip("once is enough: it takes a while")
    started, result = case.run("torch", patience_s=600)
    trials = {key for key in started.loaded.options if key.startswith("trial: ")}
    assert trials == {"trial: eager", "trial: frozen TorchScript", "trial: compiled"}
    assert relative_error(result, reference) < FP32_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "precision"), [("openvino", "bf16"), ("ncnn", "fp16"), ("ncnn", "bf16")])
def test_a_smaller_precision_is_obeyed_and_shows_in_the_outputs(
    engine: str, precision: Precision, case: Case, reference: list[np.ndarray]
) -> None:
    try:
        started, result = case.run(engine, precision)
    except EngineRefused as refusal:
        pytest.skip(str(refusal))
    assert started.loaded.precision == precision
    # Half a unit in the last place of the smaller type, per rounding; far above anything fp32 does.
    unit = {"bf16": 2.0**-9, "fp16": 2.0**-12}[precision]
    error = relative_error(result, reference)
    assert FP32_TOLERANCE / 10 < error < 20 * unit
    assert error > 10 * relative_error(case.run(engine)[1], reference)


def test_a_precision_the_engine_does_not_have_is_refused(case: Case) -> None:
    with pytest.raises(EngineRefused, match="expected fp32, got bf16"):
        case.run("onnxruntime", "bf16")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "ncnn", "torch"])
def test_a_missing_library_names_the_command_that_installs_it(engine: str, tmp_path: Path) -> None:
    library = LIBRARIES[engine]
    (tmp_path / f"{library}.py").write_text(f'raise ModuleNotFoundError("No module named {library!r}")')
    np.save(tmp_path / "inputs.npy", np.zeros((1, 1, 3, 4, 5), np.float32))
    job = Job("none.onnx", "image", (1, 3, 4, 5), "label", "fp32", 1)
    worker = Worker(engine, job, tmp_path / "inputs.npy", module_path=tmp_path)
    with worker, pytest.raises(EngineMissing, match=rf"{library}.*pip install 'perwatt\["):
        worker.start(60)


@pytest.mark.parametrize("engine", ["ncnn", pytest.param("torch", marks=pytest.mark.slow)])
def test_an_operator_without_a_translation_is_named(engine: str, tmp_path: Path) -> None:
    if not importlib.util.find_spec(LIBRARIES[engine]):
        pytest.skip(f"{engine} is not installed")
    helper = onnx.helper
    value = [helper.make_tensor_value_info(name, 1, [1, 2, 3, 4]) for name in ("image", "label")]
    graph = helper.make_graph([helper.make_node("Sinh", ["image"], ["label"])], "sinh", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "sinh.onnx")
    np.save(tmp_path / "inputs.npy", np.zeros((1, 1, 2, 3, 4), np.float32))
    job = Job(str(tmp_path / "sinh.onnx"), "image", (1, 2, 3, 4), "label", "fp32", 1)
    with Worker(engine, job, tmp_path / "inputs.npy") as worker, pytest.raises(EngineRefused, match="Sinh"):
        worker.start(60)


@pytest.mark.alone
def test_the_harness_costs_less_than_thirty_microseconds_a_run(case: Case) -> None:
    # Five blocks, of which the median counts; a measured figure is about 0.3 us, a busy machine may make it 3.
    assert 0 < harness_cost_s(case.job(), case.inputs_path, runs=2000) < 30e-6


def test_the_table_names_each_engine_once_and_its_files_exist() -> None:
    names = [each.name for each in ENGINES]
    assert len(set(names)) == len(names)
    for each in ENGINES:
        module, _, kind = each.target.partition(":")
        specification = importlib.util.find_spec(module)
        assert specification is not None
        assert specification.origin is not None
        assert f"class {kind}" in Path(specification.origin).read_text()


@pytest.mark.slow
def test_auto_is_found_on_the_jobs_images_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker finds its numbers where nothing is kept, says what it found, and needs no images the next time."""
    monkeypatch.setenv("PERWATT_CACHE", str(tmp_path / "cache"))
    case = Case(tmp_path, 2)
    job = case.job("auto", patience_s=120.0)
    with (
        pytest.raises(EngineRefused, match="run perwatt tune NETWORK --precision auto first"),
        Worker("perwatt", job, case.inputs_path) as worker,
    ):
        worker.start()
    tuning_path = tmp_path / "tuning.npy"
    np.save(tuning_path, np.random.default_rng(5).normal(size=(24, *INPUT_SHAPE)).astype(np.float32))
    for given in (dataclasses.replace(job, tuning_path=str(tuning_path)), job):
        with Worker("perwatt", given, case.inputs_path) as worker:
            loaded = worker.start().loaded
        assert loaded.precision == "auto"
        assert loaded.coarsest in ("fp32", "fp16", "bf16")
        assert "of 24 images" in loaded.options["auto"]
        assert "weights" in loaded.options["steps"]
        assert "activations" in loaded.options
