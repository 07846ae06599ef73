"""The engine that does nothing: what is measured with it is the cost of the harness alone."""

import numpy as np
import onnx

from perwatt.errors import EngineRefused
from perwatt.lab.engine import Job, Loaded


class NullEngine:
    """Hands back one prepared array of zeros of the network's output shape."""

    def load(self, job: Job) -> Loaded:
        model = onnx.load(job.model_path, load_external_data=False)
        for value in model.graph.output:
            if value.name == job.output_name:
                shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
                self._output = np.zeros(shape, np.float32)
                return Loaded(version="1", precision=job.precision)
        raise EngineRefused(f"null: the network has no output {job.output_name!r}; name one of its outputs")

    def run(self, images: np.ndarray) -> np.ndarray:
        return self._output

    def close(self) -> None:
        pass
