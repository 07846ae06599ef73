"""perwatt's own engine, as one row among its rivals."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

import perwatt
from perwatt.errors import EngineRefused, InputError, NetworkError, PlanError
from perwatt.lab.engine import Job, Loaded, Numbers
from perwatt.run import Model, precision_file
from perwatt.run import compile as compile_network
from perwatt.run.automatic import summary, tune_precision
from perwatt.run.compile import read_graph

MOST_TUNING_S = 60.0
TUNING_SHARE = 0.25  # of the patience, for timing steps, where precision auto has to be found as well


class OwnEngine:
    """Compiles the same ONNX file that the rivals read; its steps are tuned by measuring as long as patience lasts;
    what was measured before on this machine is not measured again. The numbers of precision auto are those that were
    kept for the network, else they are found on the job's images."""

    def load(self, job: Job) -> Loaded:
        told: dict[str, str] = {}
        try:
            precision: str | Mapping[str, Any] = job.precision
            if job.precision == "auto":
                precision = _found(job)
                told["auto"] = summary(precision)[0]
            self._model: Model = compile_network(
                job.model_path,
                threads=job.threads,
                precision=precision,
                tune_limit_s=min(job.patience_s, MOST_TUNING_S),
            )
        except (InputError, NetworkError, PlanError) as error:
            raise EngineRefused(f"perwatt: {error}") from error
        if list(self._model.outputs) != [job.output_name]:
            has = ", ".join(self._model.outputs)
            raise EngineRefused(f"perwatt: expected a network with the one output {job.output_name!r}, got {has}")
        return Loaded(
            version=perwatt.__version__,
            precision=job.precision,
            options={
                **told,
                **_kinds(self._model, job.precision),
                "threads": str(job.threads),
                "tuned": f"by measuring, at most {min(job.patience_s, MOST_TUNING_S):.3g} s and one round",
                "working memory": f"{self._model.working_bytes} bytes",
                "weights": f"{self._model.weight_bytes} bytes",
            },
            coarsest=_coarsest(self._model) if job.precision == "auto" else None,
        )

    def run(self, images: np.ndarray) -> np.ndarray:
        return self._model(images)

    def close(self) -> None:
        del self._model


def _found(job: Job) -> dict[str, Any]:
    """Return the evidence of precision auto: what is kept for the network, else what the job's images show now."""
    graph = read_graph(job.model_path, None)
    remedy = "run perwatt tune NETWORK --precision auto first"
    kept = precision_file.load(graph)
    if kept is not None:
        return kept
    if job.tuning_path is None:
        raise EngineRefused(f"perwatt: auto is found on images, and has not been for this network; {remedy}")
    stop = time.monotonic() + job.patience_s

    def tell(text: str) -> None:
        if time.monotonic() > stop:
            raise EngineRefused(
                f"perwatt: the numbers of precision auto were not found within {job.patience_s:.3g} s; {remedy}"
            )

    images = np.load(job.tuning_path, allow_pickle=False)
    limit_s = min(TUNING_SHARE * job.patience_s, MOST_TUNING_S)
    return tune_precision(graph, None, images, threads=job.threads, progress=tell, tune_limit_s=limit_s)[1]


def _kinds(model: Model, precision: str) -> dict[str, str]:
    """Return what the steps with weights use, and activations: precision is a permission, not a command.

    Of a mixture, the steps' names; else how many there are.
    """
    if precision == "fp32":
        return {}
    kinds: dict[str, list[str]] = {}
    for planned in model.plan.steps:
        if planned.choice.error:
            kind = f"weights {planned.choice.weights}, products {planned.choice.arithmetic}"
            kinds.setdefault(kind, []).append(planned.step.name)
    ordered = sorted(kinds.items(), key=lambda each: -len(each[1]))
    made = [tensor.element for planned in model.plan.steps for tensor in planned.step.outputs]
    halves = ", ".join(f"{made.count(each)} in {each}" for each in ("fp16", "bf16") if each in made)
    return {
        "steps": "; ".join(
            f"{len(names)} x {kind}" + (f" ({', '.join(names)})" if precision == "auto" else "")
            for kind, names in ordered
        ),
        "activations": f"{halves or 'none in halves'}, of {len(made)}",
    }


def _coarsest(model: Model) -> Numbers:
    """Return the coarsest numbers that a Model stores or multiplies: BF16 has the fewest digits, FP32 the most."""
    used: set[str] = set()
    for planned in model.plan.steps:
        used |= {planned.choice.weights, planned.choice.arithmetic, *(t.element for t in planned.step.outputs)}
    return "bf16" if "bf16" in used else "fp16" if "fp16" in used else "fp32"
