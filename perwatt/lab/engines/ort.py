"""ONNX Runtime on the CPU, tuned for one request at a time; and the reference: the same with nothing rewritten."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import onnxruntime

from perwatt.errors import EngineRefused
from perwatt.lab.engine import Job, Loaded

# The newest AVX-512 depthwise kernel, bit for bit the older one's results; versions that do not know the key ignore it.
_CONFIGURATION = MappingProxyType(
    {
        "session.set_denormal_as_zero": "1",
        "session.intra_op.allow_spinning": "1",
        "mlas.nchwc_depthwise_sliding": "1",
    }
)


class OnnxRuntimeEngine:
    """Every graph optimisation, sequential execution, spinning threads, inputs and output bound without a copy."""

    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    configuration: Mapping[str, str] = _CONFIGURATION

    def load(self, job: Job) -> Loaded:
        if job.precision != "fp32":
            raise EngineRefused(
                f"onnxruntime: expected fp32, got {job.precision}; its CPU provider computes CNNs in fp32"
            )
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = self.level
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = job.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        for key, value in self.configuration.items():
            options.add_session_config_entry(key, value)
        try:
            self._session = onnxruntime.InferenceSession(job.model_path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exception classes share no base but Exception
            raise EngineRefused(
                f"onnxruntime: cannot load this network ({' '.join(str(error).split())[:300]})"
            ) from error
        self._input = job.input_name
        output = next(each for each in self._session.get_outputs() if each.name == job.output_name)
        self._output = np.empty(output.shape, np.float32)
        self._binding = self._session.io_binding()
        self._binding.bind_output(job.output_name, "cpu", 0, np.float32, self._output.shape, self._output.ctypes.data)
        return Loaded(
            version=onnxruntime.__version__,
            precision="fp32",
            options={
                "providers": "CPUExecutionProvider",
                "graph_optimization_level": self.level.name,
                "execution_mode": "ORT_SEQUENTIAL",
                "intra_op_num_threads": str(job.threads),
                "inter_op_num_threads": "1",
                "binding": "input and output bound to the caller's memory",
                **self.configuration,
            },
        )

    def run(self, images: np.ndarray) -> np.ndarray:
        self._binding.bind_cpu_input(self._input, images)
        self._session.run_with_iobinding(self._binding)
        return self._output

    def close(self) -> None:
        del self._binding, self._session


class ReferenceEngine(OnnxRuntimeEngine):
    """What every row's outputs are compared with: ONNX Runtime with its optimisations off, denormals as they come."""

    level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    configuration: Mapping[str, str] = MappingProxyType({})
