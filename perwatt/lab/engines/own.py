"""perwatt's own engine, as one row among its rivals."""

import numpy as np

import perwatt
from perwatt.errors import EngineRefused, NetworkError, PlanError
from perwatt.lab.engine import Job, Loaded
from perwatt.run import Model
from perwatt.run import compile as compile_network

MOST_TUNING_S = 60.0


class OwnEngine:
    """Compiles the same ONNX file that the rivals read; its steps are tuned by measuring as long as patience lasts;
    what was measured before on this machine is not measured again."""

    def load(self, job: Job) -> Loaded:
        if job.precision != "fp32":
            raise EngineRefused(f"perwatt: expected fp32, got {job.precision}; its kernels compute in fp32 so far")
        try:
            self._model: Model = compile_network(
                job.model_path, threads=job.threads, tune_limit_s=min(job.patience_s, MOST_TUNING_S)
            )
        except (NetworkError, PlanError) as error:
            raise EngineRefused(f"perwatt: {error}") from error
        if list(self._model.outputs) != [job.output_name]:
            has = ", ".join(self._model.outputs)
            raise EngineRefused(f"perwatt: expected a network with the one output {job.output_name!r}, got {has}")
        return Loaded(
            version=perwatt.__version__,
            precision="fp32",
            options={
                "threads": str(job.threads),
                "tuned": f"by measuring, at most {min(job.patience_s, MOST_TUNING_S):.3g} s and one round",
                "working memory": f"{self._model.working_bytes} bytes",
                "weights": f"{self._model.weight_bytes} bytes",
            },
        )

    def run(self, images: np.ndarray) -> np.ndarray:
        return self._model(images)

    def close(self) -> None:
        del self._model
