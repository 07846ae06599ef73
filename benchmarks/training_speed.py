"""What perwatt's training loop costs beside a bare PyTorch loop, and whether pictures keep it fed.

    python benchmarks/training_speed.py            # prints; --json FILE keeps the raw samples too

Loop: perwatt's whole loop (`fit`: steps, sums, event log, progress; a validation and a checkpoint are timed apart)
against PyTorch's tutorial loop: the same module, loss and tensors, momentum SGD, as many threads. They take turns in
short blocks, forwards and backwards. PyTorch runs twice, with the weights in its usual memory order and in that of the
tensors (channels last), and the faster of the two is the rival. perwatt runs with the settings that make a run repeat
itself: "plain" with the rival's momentum SGD, "recipe" with what the quick recipe adds (label smoothing, clipping, an
average of the weights, no decay of biases). The ratio is the median over the rounds, with a bootstrap interval.

Data: JPEG photographs of 500x375 pixels, cut out of larger ones at their own resolution; a part of each is cut,
resized to 224x224 and mirrored while the network learns from them on the same cores: the share of time that steps wait,
images/s beside those from memory, and what decoding alone reaches.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from perwatt.data import Split, open_data
from perwatt.lab.photographs import find_photographs
from perwatt.machine import this_machine
from perwatt.networks import NETWORKS, build
from perwatt.networks.training import AUXILIARY_WEIGHT
from perwatt.package.preprocessing import Preprocessing, decode
from perwatt.train import checkpoint
from perwatt.train.batches import Batch, Batches
from perwatt.train.checkpoint import Checkpoint
from perwatt.train.events import EventLog
from perwatt.train.learner import Learner
from perwatt.train.loop import Run, Standing, fit
from perwatt.train.module import TrainingForm, initialise, training_form
from perwatt.train.recipe import Recipe, recipe_for
from perwatt.train.request import Request
from perwatt.train.training import exact

PLAIN = Recipe(clip=0, ema=0, label_smoothing=0, weight_decay=5e-4, momentum=0.9, augment="none", flip=False)
# Network, size, images in a step; a block has as many steps as fill BLOCK_S.
CASES = (("lenet", 28, 64), ("squeezenet1.1", 224, 16), ("googlenet", 224, 8), ("resnet50", 224, 8))
FED = (("lenet", 16), ("squeezenet1.1", 16), ("alexnet", 16), ("googlenet", 16))
ROUNDS, BLOCK_S, MOST_STEPS = 7, 0.8, 200
FED_S, FEWEST_STEPS = 14.0, 12
SIDE, WIDTH, HEIGHT = 224, 500, 375
# What is asked for: the loop at least so fast as the bare one, steps that wait at most so long.
LEAST_RATIO, MOST_WAITING = 0.95, 0.05


def module_of(network: str, size: int, auxiliary: bool = True) -> TrainingForm:
    """Return a network as it begins to learn, with ten classes and its auxiliary answers."""
    module = training_form(build(network, classes=10, size=size, auxiliary=auxiliary))
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


class Given:
    """Batches that are there already, in the form that the loop takes; `took_s` is what its steps took."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches, self.took_s, self.began = batches, math.nan, math.nan

    def epoch(self, epoch: int, batch: int, first: int = 0) -> Iterator[Batch]:
        """Begin to count, and yield the batches."""
        self.began = time.perf_counter()
        yield from self.batches

    def in_order(self, batch: int) -> Iterator[Batch]:
        """End the count, and yield one image: the loop validates when its steps are done."""
        self.took_s = time.perf_counter() - self.began
        yield Batch(self.batches[0].images[:1], self.batches[0].labels[:1])


def bare_loop(network: str, size: int, batches: list[Batch], order: torch.memory_format) -> Callable[[], float]:
    """Return PyTorch's tutorial loop over the batches, with the weights in a memory order; it returns its seconds."""
    module = module_of(network, size).to(memory_format=order).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-5, momentum=0.9, weight_decay=5e-4)
    tensors = [(torch.from_numpy(each.images), torch.from_numpy(each.labels)) for each in batches]

    def run() -> float:
        began = time.perf_counter()
        for images, labels in tensors:
            optimizer.zero_grad()
            answers = module(images)
            main, *auxiliary = answers if isinstance(answers, tuple) else (answers,)
            loss = functional.cross_entropy(main, labels)
            for answer in auxiliary:
                loss = loss + AUXILIARY_WEIGHT * functional.cross_entropy(answer, labels)
            loss.backward()
            optimizer.step()
        return time.perf_counter() - began

    return run


@contextmanager
def without_checkpoints() -> Iterator[None]:
    """Let the loop write no checkpoints: one comes with each block here, with each minute in a run."""
    keep, write = checkpoint.keep, checkpoint.write
    checkpoint.keep = lambda content, folder, step: 0
    checkpoint.write = lambda content, path: 0
    try:
        yield
    finally:
        checkpoint.keep, checkpoint.write = keep, write


def own_loop(network: str, size: int, batches: list[Batch], recipe: Recipe, folder: Path) -> Callable[[], float]:
    """Return perwatt's loop over the batches, an epoch a call; it returns the seconds of its steps."""
    # As many epochs as calls: of so few steps the loop logs every one, which is the most it can.
    recipe = replace(recipe, batch=len(batches[0].labels), learning_rate=1e-4, epochs=ROUNDS + 2)
    learner = Learner(module_of(network, size), recipe, 1, len(batches))
    given = Given(batches)
    calls = [0]

    def stopped() -> bool:
        return calls[0] <= learner.step // len(batches)  # behind the epoch of this call

    def run() -> float:
        calls[0] += 1
        asked = Request("", network, size, recipe, 1, folder, threads=torch.get_num_threads())
        with exact(asked), without_checkpoints(), EventLog(folder / f"{network}.jsonl", time.time) as log:
            fit(learner, Run(folder, given, given, log, lambda progress: None, stopped), Standing())  # type: ignore[arg-type]
        return given.took_s

    return run


def loop_case(network: str, size: int, batch: int, folder: Path) -> dict[str, Any]:
    """Return images/s of the loops and the ratios to the faster bare one, with raw samples."""
    probe = bare_loop(network, size, batches_of(network, size, batch, 2), torch.channels_last)
    probe()
    steps = max(1, min(MOST_STEPS, round(BLOCK_S / (probe() / 2))))
    batches = batches_of(network, size, batch, steps)
    own = {"plain": PLAIN, "recipe": recipe_for("quick", network, grey=network == "lenet")}
    runs = {
        "bare": bare_loop(network, size, batches, torch.contiguous_format),
        "bare, channels last": bare_loop(network, size, batches, torch.channels_last),
        **{name: own_loop(network, size, batches, recipe, folder) for name, recipe in own.items()},
    }
    for run in runs.values():
        run()
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(ROUNDS):
        for name in list(runs) if number % 2 else list(runs)[::-1]:
            samples[name].append(runs[name]())
    rival = min((name for name in runs if name not in own), key=lambda name: statistics.median(samples[name]))
    found: dict[str, Any] = {"network": network, "size": size, "batch": batch, "steps": steps, "samples_s": samples}
    found["images_per_s"] = {name: batch * steps / statistics.median(times) for name, times in samples.items()}
    found["rival"] = rival
    for name in own:
        ratios = [bare / mine for bare, mine in zip(samples[rival], samples[name], strict=True)]
        low, high = interval(ratios)
        found[f"{name}_over_bare"] = {"value": statistics.median(ratios), "low": low, "high": high}
    found["checkpoint_s"] = checkpoint_seconds(network, size, own["recipe"], folder)
    return found


def checkpoint_seconds(network: str, size: int, recipe: Recipe, folder: Path) -> float:
    """Return what it takes to write one checkpoint, of which a run writes one a minute and one an epoch."""
    learner = Learner(module_of(network, size), recipe, 1, 1)
    learner.learn(batches_of(network, size, 2, 1)[0])
    began = time.perf_counter()
    tensors, values = learner.state()
    checkpoint.write(Checkpoint(tensors, {"learner": values}), folder / "one.safetensors")
    return time.perf_counter() - began


def interval(values: list[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median."""
    drawn = np.random.default_rng(1).choice(values, (2000, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return float(low), float(high)


def photographs(folder: Path, count: int = 160) -> int:
    """Write JPEG photographs of 500x375 in two classes, cut from real ones as they are; return their mean bytes."""
    whole = [photo for photo in map(decode, find_photographs(None)) if photo.width > WIDTH and photo.height > HEIGHT]
    random = np.random.default_rng(1)
    written = []
    for number in range(count):
        photo = whole[number // 2 % len(whole)]
        left, top = int(random.integers(photo.width - WIDTH)), int(random.integers(photo.height - HEIGHT))
        path = folder / str(number % 2) / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        photo.crop((left, top, left + WIDTH, top + HEIGHT)).save(path, quality=92)
        written.append(path.stat().st_size)
    return round(statistics.mean(written))


def fed_case(network: str, batch: int, split: Split, cores: int) -> dict[str, Any]:
    """Return the share of time that steps wait for pictures from files, and images/s with and without decoding."""
    known = NETWORKS[network]
    how = Preprocessing((SIDE, SIDE), 256, "bilinear", known.channel_order, known.mean, known.scale)
    recipe = recipe_for("quick", network, grey=False, batch=batch, learning_rate=1e-4)
    learner = Learner(module_of(network, SIDE), recipe, 1, 10_000)
    same = batches_of(network, SIDE, batch, 1)[0]
    learner.learn(same)
    memory_s = [seconds(lambda: learner.learn(same)) for _ in range(5)]
    steps = max(FEWEST_STEPS, round(FED_S / statistics.median(memory_s)))
    waited: list[float] = []
    stepped: list[float] = []
    with Batches(split, how, recipe, 1, cores) as batches:
        decoding_s = seconds(lambda: [None for _ in batches.epoch(0, batch)])
        epoch = 0
        while len(stepped) < steps:
            coming = batches.epoch(epoch, batch)
            epoch += 1
            while len(stepped) < steps:
                began = time.perf_counter()
                given = next(coming, None)
                if given is None:
                    break
                waited.append(time.perf_counter() - began)
                stepped.append(seconds(lambda given=given: learner.learn(given)))
            coming.close()
    memory_s += [seconds(lambda: learner.learn(same)) for _ in range(5)]
    # The first wait of all is the start of a run; those at the start of the other epochs count.
    waiting = sum(waited[1:]) / (sum(waited[1:]) + sum(stepped[1:]))
    return {
        "network": network,
        "batch": batch,
        "steps": len(stepped),
        "waiting": waiting,
        "images_per_s": batch * (len(stepped) - 1) / (sum(waited[1:]) + sum(stepped[1:])),
        "images_per_s_in_memory": batch / statistics.median(memory_s),
        "decoding_alone_images_per_s": batch * batches.steps(batch) / decoding_s,
        "waited_s": waited,
        "stepped_s": stepped,
        "memory_s": memory_s,
    }


def seconds(run: Callable[[], object]) -> float:
    """Return how long a run takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def loop_line(case: dict[str, Any]) -> str:
    """Return what a loop's case found, with the verdict of each recipe."""
    speeds = ", ".join(f"{name} {speed:,.0f}" for name, speed in case["images_per_s"].items())
    parts = []
    for name in ("plain", "recipe"):
        ratio = case[f"{name}_over_bare"]
        kept = "yes" if ratio["low"] >= LEAST_RATIO else "no" if ratio["high"] < LEAST_RATIO else "cannot tell"
        share = f"{100 * ratio['value']:.1f} % ({100 * ratio['low']:.1f}–{100 * ratio['high']:.1f})"
        parts.append(f"{name} {share}, within 5 %: {kept}")
    return (
        f"{case['network']} {case['size']}x{case['size']}, batch {case['batch']}, blocks of {case['steps']} steps: "
        f"images/s {speeds}\n  of {case['rival']!r}: {'; '.join(parts)}; one checkpoint {case['checkpoint_s']:.2f} s"
    )


def fed_line(case: dict[str, Any]) -> str:
    """Return what a case with pictures from files found, with its verdict."""
    kept = "yes" if case["waiting"] < MOST_WAITING else "no"
    share = case["images_per_s"] / case["images_per_s_in_memory"]
    return (
        f"{case['network']} from JPEGs, batch {case['batch']}, {case['steps']} steps: {100 * case['waiting']:.1f} % "
        f"waiting, under 5 %: {kept}\n  images/s {case['images_per_s']:.1f}, from memory "
        f"{case['images_per_s_in_memory']:.1f} ({100 * share:.0f} %: decoding has its share of the same cores), "
        f"decoding alone {case['decoding_alone_images_per_s']:.0f}"
    )


def main() -> None:
    """Measure and print."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--json", type=Path)
    words.add_argument("--networks", default=",".join(name for name, *_ in CASES), help="of the loop, with commas")
    words.add_argument("--fed", default=",".join(name for name, _ in FED), help="from JPEGs, with commas")
    asked = words.parse_args()
    machine = this_machine()
    torch.set_num_threads(machine.cores)
    found: dict[str, Any] = {"machine": machine.facts(), "torch": torch.__version__, "loops": [], "fed": []}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for network, size, batch in CASES:
            if network in asked.networks.split(","):
                found["loops"].append(loop_case(network, size, batch, folder))
                print(loop_line(found["loops"][-1]), flush=True)
        pictures = folder / "pictures"
        pictures.mkdir()
        found["jpeg_bytes"] = photographs(pictures)
        split = open_data(pictures).split("train")
        print(f"{len(split)} JPEGs of {WIDTH}x{HEIGHT}, {found['jpeg_bytes'] / 1000:.0f} kB each on average")
        for network, batch in FED:
            if network in asked.fed.split(","):
                found["fed"].append(fed_case(network, batch, split, len(machine.cpus)))
                print(fed_line(found["fed"][-1]), flush=True)
    ratios = [case[f"{name}_over_bare"]["low"] for case in found["loops"] for name in ("plain", "recipe")]
    waits = [case["waiting"] for case in found["fed"]]
    verdicts = {
        "every loop within 5 % of the bare one": bool(ratios) and min(ratios) >= LEAST_RATIO,
        "every network waits less than 5 %": bool(waits) and max(waits) < MOST_WAITING,
    }
    found["verdicts"] = verdicts
    for text, kept in verdicts.items():
        print(f"{text}: {'yes' if kept else 'not shown'}")
    print(f"took {time.perf_counter() - began:.0f} s on {machine.cores} cores")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
