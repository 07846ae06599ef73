"""What perwatt's training loop costs beside a bare PyTorch loop, and whether pictures keep it fed.

    python benchmarks/training_speed.py            # prints; --json FILE keeps the raw samples too

Loop: perwatt's whole loop (`fit`: steps, sums, event log, progress; a validation and a checkpoint are timed apart)
against PyTorch's tutorial loop: the same module, loss and tensors, momentum SGD, as many threads. They take turns in
short blocks, forwards and backwards. The bare loop is tried with the weights in PyTorch's usual memory order and in
that of the tensors (channels last), with the optimizer as PyTorch chooses it and fused; the faster two are measured,
and the faster of those is the rival. perwatt runs with the settings that make a run repeat itself: "plain" with the
rival's momentum SGD, "recipe" with what the quick recipe adds (label smoothing, clipping, an average of the weights,
no decay of biases). The ratio is the median over the rounds, with a bootstrap interval; rounds end once it tells, or
with the network's share of --minutes: then the verdict may be "cannot tell".

Data: JPEG photographs of 500x375 pixels, cut out of larger ones at their own resolution; a part of each is cut,
resized to 224x224 and mirrored while the network learns from them on the same cores: the share of time that steps
wait, with its interval, images/s beside those from memory, and what decoding alone reaches.
"""

import argparse
import json
import math
import statistics
import sys
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
# What the bare loop may do: the memory order of its weights, and whether its optimizer is fused.
BARE = {
    "bare": (torch.contiguous_format, False),
    "bare, channels last": (torch.channels_last, False),
    "bare, fused": (torch.contiguous_format, True),
    "bare, channels last, fused": (torch.channels_last, True),
}
MINUTES, BLOCK_S, MOST_STEPS = 4.5, 0.6, 150
# No verdict of fewer rounds or steps; more of them than this change nothing any more.
# Who looks after every round and stops at the first verdict is wrong more often than the interval says; so a case ends
# early by a wider one, and its verdict is that of the usual interval.
PERCENT, PERCENT_BY_THE_WAY = 95.0, 99.8
FEWEST_ROUNDS, MOST_ROUNDS, FEWEST_STEPS, MOST_STEPS_FED = 5, 40, 12, 200
# What a case may take of the minutes, next to another: rounds of several loops need more of it.
LOOP_SHARE, FED_SHARE = 2, 1
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


class Until:
    """An end in time, and a line on stderr that tells how far a case is."""

    def __init__(self, name: str, limit_s: float) -> None:
        self.name, self.end = name, time.perf_counter() + limit_s

    def room(self, needed_s: float) -> bool:
        """Return whether that much time is left."""
        return time.perf_counter() + needed_s <= self.end

    def tell(self, text: str) -> None:
        """Show what was found so far."""
        left = max(0.0, self.end - time.perf_counter())
        print(f"  {self.name}: {text}; at most {left:.0f} s left", file=sys.stderr, flush=True)


def bare_loop(
    network: str, size: int, batches: list[Batch], order: torch.memory_format, fused: bool
) -> Callable[[], float]:
    """Return PyTorch's tutorial loop over the batches, with the weights in a memory order; it returns its seconds."""
    module = module_of(network, size).to(memory_format=order).train()
    # None is PyTorch's own choice, and what a tutorial leaves out.
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-5, momentum=0.9, weight_decay=5e-4, fused=fused or None)
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
    recipe = replace(recipe, batch=len(batches[0].labels), learning_rate=1e-4, epochs=MOST_ROUNDS + 2)
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


def loop_case(network: str, size: int, batch: int, folder: Path, limit_s: float) -> dict[str, Any]:
    """Return images/s of the loops and the ratios to the faster bare one, with raw samples."""
    until = Until(network, limit_s)
    probe = bare_loop(network, size, batches_of(network, size, batch, 2), torch.channels_last, True)
    probe()
    steps = max(1, min(MOST_STEPS, round(BLOCK_S / (probe() / 2))))
    batches = batches_of(network, size, batch, steps)
    own = {"plain": PLAIN, "recipe": recipe_for("quick", network, grey=network == "lenet")}
    rivals = faster_two({name: bare_loop(network, size, batches, *how) for name, how in BARE.items()})
    runs = rivals | {name: own_loop(network, size, batches, recipe, folder) for name, recipe in own.items()}
    round_s = sum(run() for run in runs.values())
    samples: dict[str, list[float]] = {name: [] for name in runs}
    found: dict[str, Any] = {"network": network, "size": size, "batch": batch, "steps": steps, "samples_s": samples}
    found["checkpoint_s"] = checkpoint_seconds(network, size, own["recipe"], folder)
    for number in range(MOST_ROUNDS):
        for name in list(runs) if number % 2 else list(runs)[::-1]:
            samples[name].append(runs[name]())
        found["rival"] = min(rivals, key=lambda name: statistics.median(samples[name]))
        sure = {}
        for name in own:
            ratios = [bare / mine for bare, mine in zip(samples[found["rival"]], samples[name], strict=True)]
            known, wide = ratio_of(ratios, PERCENT), ratio_of(ratios, PERCENT_BY_THE_WAY)
            found[f"{name}_over_bare"], sure[name] = known, loop_verdict(wide) != "cannot tell"
        until.tell(f"round {number + 1}, {'; '.join(f'{name} {share_text(found, name)}' for name in own)}")
        if all(sure.values()) or not until.room(round_s):
            break
    found["images_per_s"] = {name: batch * steps / statistics.median(times) for name, times in samples.items()}
    return found


def faster_two(loops: dict[str, Callable[[], float]]) -> dict[str, Callable[[], float]]:
    """Return the two of the loops that are fastest in one turn, after one that does not count."""
    for run in loops.values():
        run()
    took = {name: run() for name, run in loops.items()}
    return {name: loops[name] for name in sorted(took, key=lambda name: took[name])[:2]}


def loop_verdict(ratio: dict[str, float]) -> str:
    """Return whether a ratio with its interval reaches LEAST_RATIO."""
    if ratio["count"] < FEWEST_ROUNDS:
        return "cannot tell"
    return "reached" if ratio["low"] >= LEAST_RATIO else "missed" if ratio["high"] < LEAST_RATIO else "cannot tell"


def share_text(case: dict[str, Any], name: str) -> str:
    """Return a ratio to the bare loop with its interval."""
    ratio = case[f"{name}_over_bare"]
    return f"{100 * ratio['value']:.1f} % ({100 * ratio['low']:.1f}–{100 * ratio['high']:.1f})"


def checkpoint_seconds(network: str, size: int, recipe: Recipe, folder: Path) -> float:
    """Return what it takes to write one checkpoint, of which a run writes one a minute and one an epoch."""
    learner = Learner(module_of(network, size), recipe, 1, 1)
    learner.learn(batches_of(network, size, 2, 1)[0])
    began = time.perf_counter()
    tensors, values = learner.state()
    checkpoint.write(Checkpoint(tensors, {"learner": values}), folder / "one.safetensors")
    return time.perf_counter() - began


def ratio_of(values: list[float], percent: float) -> dict[str, float]:
    """Return the median with its bootstrap interval."""
    drawn = np.median(np.random.default_rng(1).choice(values, (4000, len(values))), axis=1)
    low, high = np.percentile(drawn, ((100 - percent) / 2, (100 + percent) / 2))
    return {"value": statistics.median(values), "low": float(low), "high": float(high), "count": len(values)}


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


def fed_case(network: str, batch: int, split: Split, cores: int, limit_s: float) -> dict[str, Any]:
    """Return the share of time that steps wait for pictures from files, and images/s with and without decoding."""
    until = Until(f"{network} from JPEGs", limit_s)
    known = NETWORKS[network]
    how = Preprocessing((SIDE, SIDE), 256, "bilinear", known.channel_order, known.mean, known.scale)
    recipe = recipe_for("quick", network, grey=False, batch=batch, learning_rate=1e-4)
    learner = Learner(module_of(network, SIDE), recipe, 1, 10_000)
    same = batches_of(network, SIDE, batch, 1)[0]
    learner.learn(same)
    memory_s = [seconds(lambda: learner.learn(same)) for _ in range(3)]
    reserved_s = 4 * statistics.median(memory_s)  # for the steps from memory at the end, and one under way
    waited: list[float] = []
    stepped: list[float] = []
    share: dict[str, float] = {}
    done, told_at = False, time.perf_counter()
    with Batches(split, how, recipe, 1, cores) as batches:
        decoding_s = seconds(lambda: [None for _ in batches.epoch(0, batch)])
        epoch = 0
        while not done:
            coming = batches.epoch(epoch, batch)
            epoch += 1
            while not done:
                began = time.perf_counter()
                given = next(coming, None)
                if given is None:
                    break
                waited.append(time.perf_counter() - began)
                stepped.append(seconds(lambda given=given: learner.learn(given)))
                count = len(stepped) - 1
                done = count > 0 and (count >= MOST_STEPS_FED or not until.room(reserved_s))
                if done or (count >= FEWEST_STEPS and time.perf_counter() - told_at > 3):
                    # The first wait of all is the start of a run; those at the start of the other epochs count.
                    share, told_at = waiting_share(waited[1:], stepped[1:], PERCENT), time.perf_counter()
                    until.tell(f"step {count}, {100 * share['value']:.1f} % waiting")
                    wide = waiting_share(waited[1:], stepped[1:], PERCENT_BY_THE_WAY)
                    done = done or fed_verdict(wide) != "cannot tell"
            coming.close()
    memory_s += [seconds(lambda: learner.learn(same)) for _ in range(3)]
    return {
        "network": network,
        "batch": batch,
        "steps": len(stepped),
        "waiting": share,
        "images_per_s": batch * (len(stepped) - 1) / (sum(waited[1:]) + sum(stepped[1:])),
        "images_per_s_in_memory": batch / statistics.median(memory_s),
        "decoding_alone_images_per_s": batch * batches.steps(batch) / decoding_s,
        "waited_s": waited,
        "stepped_s": stepped,
        "memory_s": memory_s,
    }


def waiting_share(waited: list[float], stepped: list[float], percent: float) -> dict[str, float]:
    """Return the share of time spent waiting, with the bootstrap interval over the steps."""
    both = np.array([waited, stepped])
    drawn = both[:, np.random.default_rng(1).integers(len(waited), size=(4000, len(waited)))].sum(2)
    low, high = np.percentile(drawn[0] / drawn.sum(0), ((100 - percent) / 2, (100 + percent) / 2))
    value = sum(waited) / (sum(waited) + sum(stepped))
    return {"value": value, "low": float(low), "high": float(high), "count": len(waited)}


def fed_verdict(share: dict[str, float]) -> str:
    """Return whether a share of waiting with its interval stays below MOST_WAITING."""
    if share["count"] < FEWEST_STEPS:
        return "cannot tell"
    return "reached" if share["high"] < MOST_WAITING else "missed" if share["low"] >= MOST_WAITING else "cannot tell"


def seconds(run: Callable[[], object]) -> float:
    """Return how long a run takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def loop_line(case: dict[str, Any]) -> str:
    """Return what a loop's case found, with the verdict of each recipe."""
    speeds = ", ".join(f"{name} {speed:,.0f}" for name, speed in case["images_per_s"].items())
    parts = [
        f"{name} {share_text(case, name)}, within 5 %: {loop_verdict(case[f'{name}_over_bare'])}"
        for name in ("plain", "recipe")
    ]
    rounds = len(case["samples_s"]["plain"])
    return (
        f"{case['network']} {case['size']}x{case['size']}, batch {case['batch']}, {rounds} rounds of {case['steps']} "
        f"steps: images/s {speeds}\n  of {case['rival']!r}: {'; '.join(parts)}; one checkpoint "
        f"{case['checkpoint_s']:.2f} s"
    )


def fed_line(case: dict[str, Any]) -> str:
    """Return what a case with pictures from files found, with its verdict."""
    share = case["waiting"]
    of_memory = case["images_per_s"] / case["images_per_s_in_memory"]
    return (
        f"{case['network']} from JPEGs, batch {case['batch']}, {case['steps']} steps: {100 * share['value']:.1f} % "
        f"({100 * share['low']:.1f}–{100 * share['high']:.1f}) waiting, under 5 %: {fed_verdict(share)}\n"
        f"  images/s {case['images_per_s']:.1f}, from memory {case['images_per_s_in_memory']:.1f} "
        f"({100 * of_memory:.0f} %: decoding has its share of the same cores), decoding alone "
        f"{case['decoding_alone_images_per_s']:.0f}"
    )


def main() -> None:
    """Measure and print."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--json", type=Path)
    words.add_argument("--networks", default=",".join(name for name, *_ in CASES), help="of the loop, with commas")
    words.add_argument("--fed", default=",".join(name for name, _ in FED), help="from JPEGs, with commas")
    words.add_argument("--minutes", type=float, default=MINUTES, help=f"for all networks together ({MINUTES})")
    asked = words.parse_args()
    machine = this_machine()
    torch.set_num_threads(machine.cores)
    found: dict[str, Any] = {"machine": machine.facts(), "torch": torch.__version__, "loops": [], "fed": []}
    began = time.perf_counter()
    loops = [case for case in CASES if case[0] in asked.networks.split(",")]
    fed = [case for case in FED if case[0] in asked.fed.split(",")]
    to_come = LOOP_SHARE * len(loops) + FED_SHARE * len(fed)

    def share_s(parts: int) -> float:
        """Return what a case of so many parts may take of what is left."""
        return parts / to_come * max(0.0, 60 * asked.minutes - (time.perf_counter() - began))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for network, size, batch in loops:
            found["loops"].append(loop_case(network, size, batch, folder, share_s(LOOP_SHARE)))
            print(loop_line(found["loops"][-1]), flush=True)
            to_come -= LOOP_SHARE
        if fed:
            pictures = folder / "pictures"
            pictures.mkdir()
            found["jpeg_bytes"] = photographs(pictures)
            split = open_data(pictures).split("train")
            print(f"{len(split)} JPEGs of {WIDTH}x{HEIGHT}, {found['jpeg_bytes'] / 1000:.0f} kB each on average")
        for network, batch in fed:
            found["fed"].append(fed_case(network, batch, split, len(machine.cpus), share_s(FED_SHARE)))
            print(fed_line(found["fed"][-1]), flush=True)
            to_come -= FED_SHARE
    told = [loop_verdict(case[f"{name}_over_bare"]) for case in found["loops"] for name in ("plain", "recipe")]
    verdicts = {
        "every loop within 5 % of the bare one": overall(told),
        "every network waits less than 5 %": overall([fed_verdict(case["waiting"]) for case in found["fed"]]),
    }
    found["verdicts"] = verdicts
    for text, verdict in verdicts.items():
        print(f"{text}: {verdict}")
    print(f"took {time.perf_counter() - began:.0f} s on {machine.cores} cores")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


def overall(verdicts: list[str]) -> str:
    """Return the verdict of all: missed if one is, reached if all are."""
    if "missed" in verdicts:
        return "missed"
    return "cannot tell" if not verdicts or "cannot tell" in verdicts else "reached"


if __name__ == "__main__":
    main()
