"""What verified export takes: from a training form to a package, phase by phase.

    python benchmarks/export_time.py [NETWORK]     # googlenet; twice, for the code and tuning caches

The validation images are crops of scikit-image's photographs; weights are the paper's initial ones. Wall and processor
seconds stand side by side: on a busy machine only the latter mean anything.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from perwatt.data import Split, Stored
from perwatt.lab.photographs import find_photographs
from perwatt.networks import NETWORKS, build
from perwatt.package.preprocessing import Preprocessing, decode
from perwatt.train.export import publish
from perwatt.train.module import initialise, training_form

CROPS = 4
SIDE = 280


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "googlenet"
    network = NETWORKS[name]
    how = Preprocessing(
        size=network.input_size, resize_to=network.resize_to, interpolation=network.interpolation,
        channel_order=network.channel_order, mean=network.mean, scale=network.scale,
    )  # fmt: skip
    random = np.random.default_rng(1)
    pixels = []
    for path in find_photographs(None):
        photo = np.asarray(decode(path))
        for _ in range(CROPS):
            top, left = (int(random.integers(0, length - SIDE)) for length in photo.shape[:2])
            pixels.append(photo[top : top + SIDE, left : left + SIDE])
    data = Split(Stored(np.stack(pixels), "photographs"), np.arange(len(pixels)) % 8)
    module = training_form(build(name))
    initialise(module, name, seed=1)
    classes = module.graph.values[module.graph.outputs[0]].shape[1]
    with tempfile.TemporaryDirectory() as folder:
        for turn in ("first", "again"):
            start, spent = time.perf_counter(), time.process_time()

            def tell(what: str, start: float = start, spent: float = spent) -> None:
                print(f"{time.perf_counter() - start:7.1f} s {time.process_time() - spent:7.1f} s  {what}", flush=True)

            print(f"{name}, {turn}: wall, processor")
            path = Path(folder) / "made.perwatt"
            publish(
                module, module.graph, data, how, [str(place) for place in range(classes)], path, name=name, tell=tell
            )
            tell(f"written, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
