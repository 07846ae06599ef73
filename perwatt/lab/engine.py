"""The contract between the lab and anything that runs a network: load, run, close.

An engine lives in a process of its own (`worker.py`) and knows nothing of clocks, blocks, statistics or Records.
"""

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

Numbers = Literal["fp32", "bf16", "fp16"]
# "auto" is a mixture: per step the cheapest numbers that keep the answers.
Precision = Literal["fp32", "bf16", "fp16", "auto"]
Device = Literal["cpu", "cuda"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16", "auto")


@dataclass(frozen=True)
class Job:
    """What an engine is asked to load: one network at one batch size in one precision.

    `model_path` is an ONNX file in which every dimension is static. Images are float32 arrays of `input_shape`
    (batch first); the engine returns the tensor `output_name` as float32. An engine that could get faster by long work
    while loading (compiling, tuning) leaves it out when it would not fit into `patience_s`, and says so in its options.
    `tuning_path` is a .npy file of further images, float32 [images, ...], to find the numbers of precision auto on:
    other crops than those that are measured. None: there are none.
    """

    model_path: str
    input_name: str
    input_shape: tuple[int, ...]
    output_name: str
    precision: Precision
    threads: int
    device: Device = "cpu"
    patience_s: float = 600.0
    tuning_path: str | None = None


@dataclass(frozen=True)
class Loaded:
    """What an engine says of itself after loading: exact versions, and every option that differs from a bare install.

    `precision` is what the engine reports or was pinned to, so that a row can show a precision that was not obeyed.
    `coarsest` are the coarsest numbers in a mixture, which its answers are held to; None for any other precision.
    """

    version: str
    precision: Precision
    options: dict[str, str] = field(default_factory=dict)
    coarsest: Numbers | None = None


class Engine(Protocol):
    """Three calls. `load` raises EngineMissing or EngineRefused; `run` may be called any number of times after it.

    The array that `run` returns may be overwritten by the next `run`: the worker copies what it keeps.
    """

    def load(self, job: Job) -> Loaded: ...

    def run(self, images: np.ndarray) -> np.ndarray: ...

    def close(self) -> None: ...
