"""OpenVINO on the CPU, tuned for one request at a time, its precision pinned and asked back."""

from typing import Any

import numpy as np
import openvino

from perwatt.errors import EngineRefused
from perwatt.lab.engine import Job, Loaded, Precision

# Left alone, OpenVINO computes in bf16 (or fp16) wherever the processor has it, and calls that the default.
_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_CAPABILITIES: dict[Precision, str] = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16"}


class OpenVinoEngine:
    """One stream, one request, inputs and output shared with the caller without a copy."""

    def load(self, job: Job) -> Loaded:
        library = openvino.Core()
        capabilities = library.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if _CAPABILITIES[job.precision] not in capabilities:
            has = ", ".join(sorted(capabilities))
            raise EngineRefused(f"openvino: expected a precision this processor has ({has}), got {job.precision}")
        wanted = {
            "PERFORMANCE_HINT": "LATENCY",
            "PERFORMANCE_HINT_NUM_REQUESTS": "1",
            "INFERENCE_PRECISION_HINT": _HINTS[job.precision],
            "INFERENCE_NUM_THREADS": str(job.threads),
            "NUM_STREAMS": "1",
            "ENABLE_CPU_PINNING": "YES",
            "CPU_DENORMALS_OPTIMIZATION": "YES",
        }
        try:
            model = library.read_model(job.model_path)
            self._compiled = library.compile_model(model, "CPU", wanted)
        except RuntimeError as error:
            raise EngineRefused(f"openvino: cannot load this network ({' '.join(str(error).split())[:300]})") from error
        obeyed = _text(self._compiled.get_property("INFERENCE_PRECISION_HINT"))
        if obeyed != wanted["INFERENCE_PRECISION_HINT"]:
            raise EngineRefused(f"openvino: expected to compute in {job.precision}, got {obeyed}; leave this row out")
        self._request = self._compiled.create_infer_request()
        self._port = self._compiled.output(job.output_name)
        return Loaded(
            version=openvino.__version__,
            precision=job.precision,
            options={key: _text(self._compiled.get_property(key)) for key in (*wanted, "EXECUTION_DEVICES")}
            | {"sharing": "input and output share the caller's memory"},
        )

    def run(self, images: np.ndarray) -> np.ndarray:
        self._request.set_input_tensor(openvino.Tensor(images, shared_memory=True))
        self._request.infer(share_outputs=True)
        output: np.ndarray = self._request.get_tensor(self._port).data
        return output

    def close(self) -> None:
        del self._request, self._port, self._compiled


def _text(value: Any) -> str:
    if isinstance(value, openvino.Type):
        return str(value.get_type_name())
    return " ".join(value) if isinstance(value, list) else str(value)
