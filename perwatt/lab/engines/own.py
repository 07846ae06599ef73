"""perwatt's own engine, as one row among its rivals."""

import importlib

import numpy as np

import perwatt
from perwatt.errors import EngineMissing, EngineRefused, NetworkError, PlanError
from perwatt.graph import read
from perwatt.lab.engine import Job, Loaded


class OwnEngine:
    """Reads the same ONNX file as the rivals and compiles it with perwatt.run."""

    def load(self, job: Job) -> Loaded:
        compiler = getattr(importlib.import_module("perwatt.run"), "compile", None)
        if not callable(compiler):
            raise EngineMissing("perwatt: its own engine is not built yet; choose another engine")
        try:
            graph = read(job.model_path)
            self._model = compiler(graph, batch=job.input_shape[0], precision=job.precision, threads=job.threads)
        except (NetworkError, PlanError) as error:
            raise EngineRefused(f"perwatt: {error}") from error
        return Loaded(perwatt.__version__, job.precision, {"threads": str(job.threads)})

    def run(self, images: np.ndarray) -> np.ndarray:
        output: np.ndarray = self._model(images)
        return output

    def close(self) -> None:
        del self._model
