"""Networks that misbehave on request, loaded by model processes of the tests: the first value of an image says how."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from perwatt.errors import InvalidPackage
from perwatt.serve.loaded import Loaded, Tell
from perwatt.serve.service import TensorFacts

BAD, DEADLY, HANGING = -1.0, -2.0, -3.0
SHAPE = (3, 4)


def create(arguments: Mapping[str, Any], tell: Tell) -> Loaded:
    """Return a network of two outputs: each image times two, and its sum.

    arguments: sizes, batch_s (seconds of a batch), log (a file that gets a line "start end" for each batch).
    """
    pause_s = arguments.get("batch_s", 0.0)
    log = arguments.get("log")

    def runner(size: int) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
        def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
            begun = time.monotonic()
            assert images.shape == (size, *SHAPE)
            codes = images[:, 0, 0]
            if (codes == DEADLY).any():
                time.sleep(0.05)  # so that others can queue up behind it
                os.kill(os.getpid(), signal.SIGSEGV)
            if (codes == HANGING).any():
                time.sleep(3600)
            if (codes == BAD).any():
                raise ValueError("an image nobody can bear")
            if pause_s:
                time.sleep(pause_s)
            if log:
                with open(log, "a") as file:
                    file.write(f"{begun} {time.monotonic()}\n")
            return images * 2, images.sum(axis=(1, 2))

        return run

    float32 = np.dtype(np.float32)
    return Loaded(
        runs={size: runner(size) for size in arguments["sizes"]},
        input=TensorFacts("pixels", float32, SHAPE),
        outputs=(TensorFacts("twice", float32, SHAPE), TensorFacts("sum", float32, ())),
        notes=("made for tests",),
    )


def refuse(arguments: Mapping[str, Any], tell: Tell) -> Loaded:
    """Fail as a damaged package does."""
    tell("looking at it")
    raise InvalidPackage("expected a package, got a test")


def die(arguments: Mapping[str, Any], tell: Tell) -> Loaded:
    """Die before anything is ready."""
    os._exit(7)


def only_while(arguments: Mapping[str, Any], tell: Tell) -> Loaded:
    """Load as long as a file exists."""
    if not Path(arguments["flag"]).exists():
        raise InvalidPackage("the package has gone")
    return create(arguments, tell)
