"""The engines the lab can run, as one table. Nothing here imports an engine: only a worker process does, by name."""

from dataclasses import dataclass

from perwatt.lab.engine import Device, Precision


@dataclass(frozen=True)
class EngineEntry:
    """One engine: where its class is ("module:Class"), what it needs installed, and what it may be asked for.

    `distributions` are the installed packages whose versions tell whether the engine is here; `precisions` are those
    worth asking for, the engine itself has the last word.
    """

    name: str
    target: str
    distributions: tuple[str, ...]
    install: str
    device: Device
    precisions: tuple[Precision, ...]


_BENCH = "python -m pip install 'perwatt[bench]'"
_TRAIN = "python -m pip install 'perwatt[train]'"
_HERE = "perwatt.lab.engines"

ENGINES: tuple[EngineEntry, ...] = (
    EngineEntry("perwatt", f"{_HERE}.own:OwnEngine", ("llvmlite",), "", "cpu", ("fp32", "bf16", "fp16", "auto")),
    EngineEntry("onnxruntime", f"{_HERE}.ort:OnnxRuntimeEngine", ("onnxruntime",), _BENCH, "cpu", ("fp32",)),
    EngineEntry(
        *("openvino", f"{_HERE}.openvino_cpu:OpenVinoEngine", ("openvino",), _BENCH, "cpu"), ("fp32", "bf16", "fp16")
    ),
    EngineEntry("ncnn", f"{_HERE}.ncnn_cpu:NcnnEngine", ("ncnn",), _BENCH, "cpu", ("fp32", "bf16", "fp16")),
    EngineEntry("torch", f"{_HERE}.torch_cpu:TorchEngine", ("torch",), _TRAIN, "cpu", ("fp32", "bf16")),
    EngineEntry(
        *("torch-cuda", f"{_HERE}.torch_cuda:TorchCudaEngine", ("torch",), _TRAIN, "cuda"), ("fp32", "fp16", "bf16")
    ),
    EngineEntry("null", f"{_HERE}.null:NullEngine", (), "", "cpu", ("fp32",)),
)
# Not a rival: what every row's outputs are compared with.
REFERENCE = EngineEntry("reference", f"{_HERE}.ort:ReferenceEngine", ("onnxruntime",), _BENCH, "cpu", ("fp32",))


def entry(name: str) -> EngineEntry | None:
    """Return the row of the table with this name (`reference` included), or None."""
    return next((engine for engine in (*ENGINES, REFERENCE) if engine.name == name), None)


def refusal(engine: EngineEntry, precision: Precision) -> str:
    """Return why an engine is not asked for a precision that its entry leaves out."""
    if precision == "auto":
        return "auto is perwatt's own mixture of precisions"
    return f"{engine.name} has no {precision} on this device"
