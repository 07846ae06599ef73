"""What perwatt's training loop costs beside a bare PyTorch loop, and whether pictures keep it fed.

    python benchmarks/training_speed.py            # prints; --json FILE keeps the raw samples too

Loop: the same module, the same tensors, turn by turn in short blocks (perwatt, bare, bare, perwatt), plain momentum
SGD in both, perwatt's with the settings that make a run repeat itself. The ratio is the median over the rounds, with a
bootstrap interval. "recipe" is the same with what the quick recipe adds (label smoothing, clipping, averaged weights).

Data: JPEG photographs of 500x375 pixels, cut, resized to 224x224, mirrored, while the network learns from them on the
same cores: the share of time that steps wait, and what decoding alone reaches.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from perwatt.data import open_data
from perwatt.machine import this_machine
from perwatt.networks import NETWORKS, build
from perwatt.package.preprocessing import Preprocessing
from perwatt.train.batches import Batch, Batches
from perwatt.train.learner import Learner
from perwatt.train.module import TrainingForm, initialise, training_form
from perwatt.train.recipe import Recipe, recipe_for
from perwatt.train.request import Request
from perwatt.train.training import exact

PLAIN = Recipe(clip=0, ema=0, label_smoothing=0, weight_decay=5e-4, momentum=0.9, augment="none", flip=False)
CASES = (("lenet", 28, 64, 60), ("squeezenet1.1", 224, 16, 2), ("googlenet", 224, 8, 1), ("resnet50", 224, 8, 1))
FED = (("squeezenet1.1", 16), ("alexnet", 32), ("googlenet", 16))
ROUNDS = 7


def module_of(network: str, size: int) -> TrainingForm:
    """Return a network as it begins to learn, with ten classes."""
    module = training_form(build(network, classes=10, size=size))
    initialise(module, network, 1)
    return module


def batches_of(network: str, size: int, batch: int, count: int) -> list[Batch]:
    """Return batches of noise in the memory order in which perwatt makes them."""
    random = np.random.default_rng(1)
    channels = 1 if NETWORKS[network].channel_order == "grey" else 3
    made = []
    for _ in range(count):
        images = random.standard_normal((batch, size, size, channels)).astype(np.float32)
        made.append(Batch(images.transpose(0, 3, 1, 2), random.integers(0, 10, batch)))
    return made


def bare_loop(network: str, size: int, batches: list[Batch]) -> Callable[[], None]:
    """Return PyTorch's tutorial loop over the batches."""
    module = module_of(network, size).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)
    tensors = [(torch.from_numpy(each.images), torch.from_numpy(each.labels)) for each in batches]

    def run() -> None:
        for images, labels in tensors:
            optimizer.zero_grad()
            answers = module(images)
            loss = functional.cross_entropy(answers[0] if isinstance(answers, tuple) else answers, labels)
            loss.backward()
            optimizer.step()

    return run


def own_loop(network: str, size: int, batches: list[Batch], recipe: Recipe) -> Callable[[], None]:
    """Return perwatt's steps over the batches."""
    learner = Learner(module_of(network, size), recipe, 1, 10_000)

    def run() -> None:
        with exact(Request("", network, size, recipe, 1, Path(), threads=torch.get_num_threads())):
            for batch in batches:
                learner.learn(batch)

    return run


def seconds(run: Callable[[], None]) -> float:
    """Return how long a run takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def loop_case(network: str, size: int, batch: int, steps: int) -> dict[str, Any]:
    """Return images/s of the loops and the ratios to the bare one, with raw samples."""
    batches = batches_of(network, size, batch, steps)
    full = recipe_for("quick", network, grey=network == "lenet", batch=batch, learning_rate=1e-4)
    own = {"plain": PLAIN, "recipe": full}
    runs = {"bare": bare_loop(network, size, batches)}
    runs |= {name: own_loop(network, size, batches, recipe) for name, recipe in own.items()}
    for run in runs.values():
        run()
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(ROUNDS):
        for name in list(runs) if number % 2 else list(runs)[::-1]:
            samples[name].append(seconds(runs[name]))
    images = batch * steps
    found: dict[str, Any] = {"network": network, "size": size, "batch": batch, "samples_s": samples}
    found["images_per_s"] = {name: images / statistics.median(times) for name, times in samples.items()}
    for name in own:
        ratios = [bare / mine for bare, mine in zip(samples["bare"], samples[name], strict=True)]
        low, high = interval(ratios)
        found[f"{name}_over_bare"] = {"value": statistics.median(ratios), "low": low, "high": high}
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median."""
    drawn = np.random.default_rng(1).choice(values, (2000, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return float(low), float(high)


def photographs(folder: Path, count: int = 128) -> None:
    """Write JPEG photographs of 500x375 in two classes: parts of a real one where scikit-image is installed."""
    from skimage import data

    whole = Image.fromarray(data.astronaut()).resize((1000, 1000))
    random = np.random.default_rng(1)
    for number in range(count):
        left, top = (int(random.integers(1000 - side)) for side in (500, 375))
        buffer = BytesIO()
        whole.crop((left, top, left + 500, top + 375)).save(buffer, "JPEG", quality=90)
        path = folder / str(number % 2) / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(buffer.getvalue())


def fed_case(network: str, batch: int, folder: Path, steps: int) -> dict[str, Any]:
    """Return the share of time that steps wait for pictures from files, and images/s with and without decoding."""
    known = NETWORKS[network]
    how = Preprocessing((224, 224), 256, "bilinear", known.channel_order, known.mean, known.scale)
    recipe = recipe_for("quick", network, grey=False, batch=batch, learning_rate=1e-4)
    learner = Learner(module_of(network, 224), recipe, 1, 10_000)
    split = open_data(folder).split("train")
    cores = len(this_machine().cpus)
    with Batches(split, how, recipe, 1, cores) as batches:
        began = time.perf_counter()
        alone = sum(len(each.labels) for _ in range(2) for each in batches.epoch(0, batch))
        decoding = alone / (time.perf_counter() - began)
        waited = stepped = images = 0.0
        epoch = done = 0
        while done < steps:
            coming = batches.epoch(epoch, batch)
            while done < steps:
                began = time.perf_counter()
                given = next(coming, None)
                got = time.perf_counter()
                if given is None:
                    break
                learner.learn(given)
                if done:  # the first wait fills the queue
                    waited, stepped = waited + got - began, stepped + time.perf_counter() - got
                    images += len(given.labels)
                done += 1
            epoch += 1
        same = Batch(given.images, given.labels) if given is not None else batches_of(network, 224, batch, 1)[0]
    in_memory = len(same.labels) / statistics.median(seconds(lambda: learner.learn(same)) for _ in range(5))
    return {
        "network": network,
        "batch": batch,
        "waiting": waited / (waited + stepped),
        "images_per_s": images / (waited + stepped),
        "images_per_s_in_memory": in_memory,
        "decoding_alone_images_per_s": decoding,
    }


def main() -> None:
    """Measure and print."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--json", type=Path)
    words.add_argument("--steps", type=int, default=24, help="steps of each fed case")
    words.add_argument("--networks", default=",".join(name for name, *_ in CASES))
    asked = words.parse_args()
    machine = this_machine()
    torch.set_num_threads(machine.cores)
    found: dict[str, Any] = {"machine": machine.facts(), "torch": torch.__version__, "loops": [], "fed": []}
    for network, size, batch, steps in CASES:
        if network in asked.networks.split(","):
            case = loop_case(network, size, batch, steps)
            found["loops"].append(case)
            speeds = ", ".join(f"{name} {speed:,.0f}" for name, speed in case["images_per_s"].items())
            shares = ", ".join(
                f"{name} {100 * case[f'{name}_over_bare']['value']:.1f} % "
                f"({100 * case[f'{name}_over_bare']['low']:.1f}–{100 * case[f'{name}_over_bare']['high']:.1f})"
                for name in ("plain", "recipe")
            )
            print(
                f"{network} {size}², batch {batch}: images/s {speeds}; of the bare loop's speed: {shares}", flush=True
            )
    with tempfile.TemporaryDirectory() as name:
        photographs(Path(name))
        for network, batch in FED:
            case = fed_case(network, batch, Path(name), asked.steps)
            found["fed"].append(case)
            print(
                f"{network} from JPEGs, batch {batch}: {100 * case['waiting']:.1f} % waiting, "
                f"{case['images_per_s']:.1f} images/s, in memory {case['images_per_s_in_memory']:.1f}, "
                f"decoding alone {case['decoding_alone_images_per_s']:.0f}",
                flush=True,
            )
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
