"""The network that does nothing: what is measured with it is the cost of the server alone.

Its answer still depends on the image, so that a load generator can check each response against its own image: the
output is the image's first values.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from perwatt.errors import InputError
from perwatt.serve.loaded import Loaded, Run, Tell
from perwatt.serve.service import TensorFacts

ANSWER_VALUES = 8


def create(arguments: Mapping[str, Any], tell: Tell) -> Loaded:
    """Return the null network.

    arguments: shape of one image; sizes of batches; batch_s and image_s, the seconds that a batch and each of its
    images take (0: none), slept away, for a null network with a pace. Raises InputError for a shape that is none.
    """
    shape = tuple(arguments["shape"])
    if not shape or any(not isinstance(side, int) or side < 1 for side in shape):
        raise InputError(f"null: expected a shape of one image such as (3, 224, 224), got {shape}")
    values = min(ANSWER_VALUES, int(np.prod(shape)))
    batch_s, image_s = float(arguments.get("batch_s", 0.0)), float(arguments.get("image_s", 0.0))

    def runner(size: int) -> Run:
        pause_s = batch_s + size * image_s

        def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
            if pause_s:
                time.sleep(pause_s)
            return (images.reshape(size, -1)[:, :values],)

        return run

    return Loaded(
        runs={size: runner(size) for size in arguments["sizes"]},
        input=TensorFacts("input", np.dtype(np.float32), shape),
        outputs=(TensorFacts("output", np.dtype(np.float32), (values,)),),
    )
