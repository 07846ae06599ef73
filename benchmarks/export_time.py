"""What verified export takes: from a training form to a package, phase by phase, and whether it stays below the limit.

    python benchmarks/export_time.py [NETWORK]     # googlenet; twice: with nothing kept, and with what the first kept

The validation images are crops of scikit-image's photographs; weights are the paper's initial ones, the module is the
one that trains, auxiliary classifiers included. The first turn finds an empty folder for compiled code and tuning
results, as on a machine that never ran perwatt: that is the one that counts. Wall and processor seconds stand side by
side: on a busy machine only the latter mean anything.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from perwatt.data import Split, Stored
from perwatt.lab.photographs import find_photographs
from perwatt.machine import this_machine
from perwatt.networks import NETWORKS, build
from perwatt.package.preprocessing import Preprocessing, decode
from perwatt.train.export import publish
from perwatt.train.module import initialise, training_form

CROPS = 8
SIDE = 280
LIMIT_S = 30.0


def photographs() -> Split:
    """Return crops of photographs as validation images of eight classes."""
    random = np.random.default_rng(1)
    pixels = []
    for path in find_photographs(None):
        photo = np.asarray(decode(path))
        for _ in range(CROPS):
            top, left = (int(random.integers(0, length - SIDE)) for length in photo.shape[:2])
            pixels.append(photo[top : top + SIDE, left : left + SIDE])
    return Split(Stored(np.stack(pixels), "photographs"), np.arange(len(pixels)) % 8)


def main() -> None:
    """Export twice and print."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("network", nargs="?", default="googlenet")
    words.add_argument("--json", type=Path)
    asked = words.parse_args()
    name = asked.network
    network = NETWORKS[name]
    how = Preprocessing(
        size=network.input_size, resize_to=network.resize_to, interpolation=network.interpolation,
        channel_order=network.channel_order, mean=network.mean, scale=network.scale,
    )  # fmt: skip
    data = photographs()
    module, deployed = training_form(build(name, auxiliary=True)), build(name)
    initialise(module, name, seed=1)
    labels = [str(place) for place in range(deployed.values[deployed.outputs[0]].shape[1])]
    machine = this_machine()
    found: dict[str, object] = {"machine": machine.facts(), "network": name, "limit_s": LIMIT_S}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PERWATT_CACHE"] = folder
        for turn in ("first", "again"):
            start, spent = time.perf_counter(), time.process_time()
            phases: list[tuple[float, float, str]] = []

            def tell(
                what: str, start: float = start, spent: float = spent, phases: list[tuple[float, float, str]] = phases
            ) -> None:
                phases.append((time.perf_counter() - start, time.process_time() - spent, what))
                print(f"{phases[-1][0]:7.1f} s {phases[-1][1]:7.1f} s  {what}", flush=True)

            print(f"{name}, {turn}: wall, processor")
            path = Path(folder) / "made.perwatt"
            package = publish(module, deployed, data, how, labels, path, name=name, tell=tell)
            tell(f"written, {path.stat().st_size / 1e6:.1f} MB")
            found[turn] = phases
        export = package.evidence["export"]
    assert isinstance(export, dict)
    checked = {key: export[key] for key in ("images", "tolerance", "batches")}
    print(f"verified: {json.dumps(checked)}")
    took_s = float(found["first"][-1][0])  # type: ignore[index]
    kept = "yes" if took_s < LIMIT_S else "no"
    print(f"{name}, nothing kept: {took_s:.1f} s on {machine.cores} cores; under {LIMIT_S:.0f} s: {kept}")
    if asked.json:
        asked.json.write_text(json.dumps({**found, "verified": checked}, indent=1) + "\n")


if __name__ == "__main__":
    main()
