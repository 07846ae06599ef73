"""What a loader hands to the model process: a network, ready to run at each of its batch sizes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from perwatt.serve.service import TensorFacts

Tell = Callable[[str], None]
Run = Callable[[np.ndarray], tuple[np.ndarray, ...]]


@dataclass(frozen=True)
class Loaded:
    """A network that is ready: `runs[size]` takes [size, ...] and gives each output [size, ...], in order.

    `notes` are sentences for people: batch sizes that were refused, and why.
    """

    runs: Mapping[int, Run]
    input: TensorFacts
    outputs: tuple[TensorFacts, ...]
    notes: tuple[str, ...] = ()
