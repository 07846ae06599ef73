"""perwatt's own engine, as one row among its rivals."""

from collections import Counter

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
        try:
            self._model: Model = compile_network(
                job.model_path,
                threads=job.threads,
                precision=job.precision,
                tune_limit_s=min(job.patience_s, MOST_TUNING_S),
            )
        except (NetworkError, PlanError) as error:
            raise EngineRefused(f"perwatt: {error}") from error
        if list(self._model.outputs) != [job.output_name]:
            has = ", ".join(self._model.outputs)
            raise EngineRefused(f"perwatt: expected a network with the one output {job.output_name!r}, got {has}")
        return Loaded(
            version=perwatt.__version__,
            precision=job.precision,
            options={
                **_kinds(self._model, job.precision),
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


def _kinds(model: Model, precision: str) -> dict[str, str]:
    """Return what the steps with weights use, by how many use it: precision is a permission, not a command."""
    if precision == "fp32":
        return {}
    choices = [planned.choice for planned in model.plan.steps if planned.choice.error]
    counts = Counter(f"weights {choice.weights}, products {choice.arithmetic}" for choice in choices)
    return {"steps": "; ".join(f"{count} x {kind}" for kind, count in counts.most_common())}
