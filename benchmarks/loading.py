"""Measure what a start costs: seconds until a network is ready, and memory that stays resident, beside OpenVINO's.

`python benchmarks/loading.py [--precision fp16] [NETWORK ...]`, GoogLeNet for the times. Prints

  cold          a first start on this machine, with an empty cache: everything compiled, with and without timing
  warm          a second start: the kernels' code and the tuning results are there
  resident      memory of an engine's process after three runs, both batch sizes, and the ratio to OpenVINO's

and one line of JSON. Goals: 20 s, 6 s without timing, 1 s; 1.3 times. With a precision: only the resident memory of
perwatt's process in it beside that in FP32. Goal: 0.6 times for alexnet in fp16.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

from perwatt.graph import write
from perwatt.lab.engine import PRECISIONS, Job, Precision
from perwatt.lab.process import BlockRequest, Worker
from perwatt.machine import this_machine
from perwatt.networks import build

START = """
import sys, time
import perwatt
start = time.perf_counter()
perwatt.compile(sys.argv[1], batch=1, tune=sys.argv[2])
print(time.perf_counter() - start)
"""
WARM_STARTS = 5
NETWORKS = ("alexnet", "googlenet", "squeezenet1.1", "resnet50", "vgg16")


def start_s(model: Path, cache: str, tune: str) -> float:
    """Return the seconds of `perwatt.compile` in a fresh process."""
    environment = {**os.environ, "PERWATT_CACHE": cache}
    done = subprocess.run(
        [sys.executable, "-c", START, str(model), tune], env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def starts(model: Path) -> dict[str, float]:
    """Return seconds of the cold and warm starts of a network."""
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        found["cold, tuned"] = start_s(model, cache, "measure")
        found["warm"] = statistics.median(start_s(model, cache, "measure") for _ in range(WARM_STARTS))
    with tempfile.TemporaryDirectory() as cache:
        found["cold, not tuned"] = start_s(model, cache, "estimate")
    return found


def resident_mib(engine: str, network: str, batch: int, folder: Path, precision: Precision = "fp32") -> float:
    """Return the resident memory of an engine's process after three runs."""
    graph = build(network, batch=batch)
    (name,) = graph.inputs
    model, inputs = folder / f"{network}-{batch}.onnx", folder / f"{network}-{batch}.npy"
    if not model.exists():
        model.write_bytes(write(graph))
        np.save(inputs, np.random.default_rng(0).standard_normal((1, *graph.values[name].shape), np.float32))
    job = Job(str(model), name, graph.values[name].shape, graph.outputs[0], precision, this_machine().cores)
    worker = Worker(engine, job, inputs)
    try:
        worker.start()
        worker.block(BlockRequest(0.0, 3, 3, 0, (), 0))
        (process,) = psutil.Process().children()
        return float(process.memory_info().rss) / 2**20
    finally:
        worker.close()


def halves(networks: Sequence[str], precision: Precision) -> None:
    """Print the resident memory in a precision beside that in FP32."""
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        for network in networks:
            for batch in (1, 48):
                half, exact = (
                    resident_mib("perwatt", network, batch, Path(name), each) for each in (precision, "fp32")
                )
                print(
                    f"{network:14} batch {batch:2}  resident {half:5.0f} MiB in {precision}, {exact:5.0f} in fp32: "
                    f"{half / exact:.2f}",
                    flush=True,
                )
                figures[f"{network} {batch}"] = {f"{precision}_mib": half, "fp32_mib": exact}
    print(json.dumps(figures))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--precision", choices=PRECISIONS[1:])
    given = parser.parse_args()
    if given.precision is not None:
        halves(given.networks, given.precision)
        return
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "googlenet.onnx"
        model.write_bytes(write(build("googlenet", batch=1)))
        seconds = starts(model)
        for what, value in seconds.items():
            print(f"googlenet, batch 1, {what:16} {value:6.2f} s", flush=True)
        figures["starts_s"] = seconds
        for network in given.networks:
            for batch in (1, 48):
                own, rival = (resident_mib(engine, network, batch, folder) for engine in ("perwatt", "openvino"))
                print(
                    f"{network:14} batch {batch:2}  resident {own:5.0f} MiB, OpenVINO {rival:5.0f}: {own / rival:.2f}",
                    flush=True,
                )
                figures[f"{network} {batch}"] = {"perwatt_mib": own, "openvino_mib": rival}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
