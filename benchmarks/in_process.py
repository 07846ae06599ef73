"""The engine's own speed on a package, for benchmarks/serving.py: a line with seconds in, a line of JSON out."""

import json
import sys
import time
from pathlib import Path

import numpy as np

from perwatt import package as packages
from perwatt.lab.photographs import find_photographs, input_batches
from perwatt.run import Model

WARM_S = 0.5
COMPARE_S = 1.5


def speed(model: Model, inputs: np.ndarray, seconds: float) -> float:
    """Return images/s over about so many seconds, inputs taking turns."""
    start, runs = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        model(inputs[runs % len(inputs)])
        runs += 1
    return runs * inputs.shape[1] / (time.monotonic() - start)


def main(path: Path, precision: str, batches: list[int]) -> None:
    """Open the package at each batch size, say how fast each is, then measure the fastest whenever asked."""
    package = packages.read(path)
    models = {}
    for batch in batches:
        made, _ = input_batches(package.preprocessing, find_photographs(None), batch, max(2, 16 // batch), 1)
        models[batch] = (packages.open(package, batch, precision), made)
    speeds = {}
    for batch, (model, inputs) in models.items():
        speed(model, inputs, WARM_S)
        speeds[batch] = speed(model, inputs, COMPARE_S)
    fastest = max(speeds, key=lambda batch: speeds[batch])
    print(json.dumps({"batch": fastest, "speeds": speeds}), flush=True)
    for line in sys.stdin:
        model, inputs = models[fastest]
        speed(model, inputs, WARM_S)
        print(json.dumps({"images_per_s": speed(model, inputs, float(line))}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], [int(word) for word in sys.argv[3:]])
