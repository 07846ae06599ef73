"""The loop: epochs of steps, validation, the best so far, events, checkpoints, and going on where a run was killed."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from perwatt.errors import TrainingError
from perwatt.train import checkpoint
from perwatt.train.batches import Batches
from perwatt.train.checkpoint import Checkpoint
from perwatt.train.events import EventLog
from perwatt.train.learner import Learner, Score
from perwatt.train.recipe import Recipe, learning_rate

Ending = Literal["finished", "early", "interrupted"]
CHECKPOINTS = "checkpoints"
BEST = f"best{checkpoint.SUFFIX}"
# A curve with more points than this shows nothing more.
CURVE_POINTS = 1000
# Reading the sums waits for a GPU; a person cannot read faster anyway.
SHOWN_EVERY_S = 0.2


@dataclass(frozen=True)
class Progress:
    """Where a run stands; `waiting` is the share of the time of steps that was spent waiting for data."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    top1: float
    images_per_s: float
    waiting: float
    left_s: float | None
    text: str = "training"
    validation: Score | None = None


@dataclass(frozen=True)
class Run:
    """What the loop needs beside the learner: data, where things are kept, and how often.

    `show` is called after steps with a Progress; `stopped` says that a person wants to stop after this step.
    """

    folder: Path
    train: Batches
    validation: Batches
    log: EventLog
    show: Callable[[Progress], None]
    stopped: Callable[[], bool]
    checkpoint_s: float = 60.0
    checkpoint_steps: int | None = None


@dataclass
class Standing:
    """What the loop itself remembers from step to step; part of every checkpoint."""

    best: list[float] | None = None
    best_epoch: int | None = None
    stale: int = 0
    ended: bool = False


@dataclass
class _Clock:
    """Seconds and images since the last event."""

    waited_s: float = 0.0
    stepped_s: float = 0.0
    images: int = 0

    def speed(self) -> float:
        total = self.waited_s + self.stepped_s
        return self.images / total if total else 0.0

    def waiting(self) -> float:
        total = self.waited_s + self.stepped_s
        return self.waited_s / total if total else 0.0


def fit(learner: Learner, run: Run, standing: Standing) -> Ending:
    """Train until the recipe's end, an early stop or a person's wish; events and checkpoints tell of it.

    Raises TrainingError when the loss is no number any more, OutputError when the disk is full, InputError when a
    picture breaks: the last checkpoint stays, and the run can be resumed.
    """
    recipe, steps = learner.recipe, learner.steps_in_epoch
    total = recipe.epochs * steps
    every = max(1, total // CURVE_POINTS)
    saved_at = shown_at = time.perf_counter()
    pace = _Pace(learner.step, total)
    whole, recent = _Clock(), _Clock()
    before = learner.tally.values()
    while learner.step < total and not standing.ended:
        epoch, first = divmod(learner.step, steps)
        batches = run.train.epoch(epoch, recipe.batch, first)
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            got = time.perf_counter()
            if batch is None:
                break
            learner.learn(batch)
            _add(whole, recent, got - began, time.perf_counter() - got, len(batch.labels))
            at_end = learner.step % steps == 0
            if learner.step % every == 0 or at_end:
                now = learner.tally.values()
                _write_steps(learner, run, epoch, now, before, recent)
                before, recent = now, _Clock()
            if time.perf_counter() - shown_at > SHOWN_EVERY_S:
                run.show(_progress(learner, epoch, whole, pace.left_s(learner.step)))
                shown_at = time.perf_counter()
            if run.stopped() and not at_end:
                _keep(learner, run, standing)
                return "interrupted"
            due = run.checkpoint_steps and learner.step % run.checkpoint_steps == 0
            if not at_end and (due or time.perf_counter() - saved_at > run.checkpoint_s):
                _keep(learner, run, standing)
                saved_at = time.perf_counter()
        _end_epoch(learner, run, standing, epoch, whole)
        whole, before = _Clock(), learner.tally.values()
        _keep(learner, run, standing)
        saved_at = time.perf_counter()
        if run.stopped() and learner.step < total and not standing.ended:
            return "interrupted"
    return "early" if learner.step < total else "finished"


def resume(learner: Learner, folder: Path) -> tuple[Standing, tuple[str, ...]]:
    """Bring a learner to its last checkpoint; return what the loop remembers and what was found damaged.

    A run that was killed before its first checkpoint begins anew. Raises TrainingError when none is whole.
    """
    found, faults = checkpoint.latest(folder / CHECKPOINTS)
    if found is None:
        return Standing(), faults
    learner.restore(found.tensors, found.values["learner"])
    return Standing(**found.values["standing"]), faults


def best_weights(folder: Path) -> Checkpoint:
    """Return the weights that validated best. Raises TrainingError when there are none."""
    return checkpoint.read(folder / BEST)


def _end_epoch(learner: Learner, run: Run, standing: Standing, epoch: int, clock: _Clock) -> None:
    recipe = learner.recipe
    loss, right, count = learner.tally.values()
    began = time.perf_counter()
    run.show(_progress(learner, epoch, clock, None, text="validating"))
    score = learner.score(run.validation.in_order(recipe.batch))
    took_s = time.perf_counter() - began
    _require_finite(learner, score.loss)  # the epoch's last update may have spoiled what its losses did not show
    merit = _merit(recipe, score)
    better = standing.best is None or merit > standing.best
    if better:
        standing.best, standing.best_epoch, standing.stale = merit, epoch, 0
        tensors = dict(learner.average.state_dict())
        values = {"epoch": epoch, "step": learner.step, "validation": asdict(score)}
        checkpoint.write(Checkpoint(tensors, values), run.folder / BEST)
    else:
        standing.stale += 1
        standing.ended = bool(recipe.patience) and standing.stale >= recipe.patience
    run.log.append(
        "epoch",
        epoch=epoch,
        step=learner.step,
        train={"loss": loss / count, "top1": right / count, "count": int(count)},
        validation=asdict(score),
        best=better,
        images_per_s=clock.speed(),
        waiting=clock.waiting(),
        seconds=clock.waited_s + clock.stepped_s,
        validation_s=took_s,
    )
    learner.tally = learner.new_tally()
    run.show(_progress(learner, epoch, clock, None, text="epoch", validation=score, sums=(loss, right, count)))


def _merit(recipe: Recipe, score: Score) -> list[float]:
    """Return what is compared to find the best: the metric, and where that ties the loss; more is better."""
    if recipe.metric == "loss":
        return [-score.loss]
    return [score.top1 if recipe.metric == "top1" else score.top5, -score.loss]


def _keep(learner: Learner, run: Run, standing: Standing) -> None:
    _require_finite(learner, learner.tally.values()[0])
    began = time.perf_counter()
    tensors, values = learner.state()
    content = Checkpoint(tensors, {"learner": values, "standing": asdict(standing)})
    size = checkpoint.keep(content, run.folder / CHECKPOINTS, learner.step)
    run.log.append("checkpoint", step=learner.step, bytes=size, seconds=time.perf_counter() - began)


def _write_steps(learner: Learner, run: Run, epoch: int, now: list[float], before: list[float], recent: _Clock) -> None:
    loss, right, count = (later - earlier for later, earlier in zip(now, before, strict=True))
    _require_finite(learner, loss)
    run.log.append(
        "steps",
        epoch=epoch,
        step=learner.step,
        loss=loss / count,
        top1=right / count,
        count=int(count),
        learning_rate=learning_rate(learner.recipe, learner.step - 1, learner.steps_in_epoch),
        gradient_norm=_number(float(learner.norm)),
        images_per_s=recent.speed(),
        waiting=recent.waiting(),
    )


def _require_finite(learner: Learner, loss: float) -> None:
    """Raise TrainingError for a loss that is no number: nothing can be learned from it, nor from what it spoiled."""
    if not math.isfinite(loss):
        rate = learning_rate(learner.recipe, learner.step - 1, learner.steps_in_epoch)
        raise TrainingError(
            f"step {learner.step}: expected a loss that is a number, got {loss}; the learning rate of {rate:.3g} is "
            "too high for this network and data: lower --learning-rate"
        )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _add(whole: _Clock, recent: _Clock, waited_s: float, stepped_s: float, images: int) -> None:
    for clock in (whole, recent):
        clock.waited_s += waited_s
        clock.stepped_s += stepped_s
        clock.images += images


class _Pace:
    """How long the rest takes if it goes on as since this process began, validation included."""

    def __init__(self, step: int, total: int) -> None:
        self.first, self.total, self.began = step, total, time.perf_counter()

    def left_s(self, step: int) -> float | None:
        done = step - self.first
        return (time.perf_counter() - self.began) / done * (self.total - step) if done else None


def _progress(
    learner: Learner,
    epoch: int,
    clock: _Clock,
    left_s: float | None,
    text: str = "training",
    validation: Score | None = None,
    sums: tuple[float, float, float] | None = None,
) -> Progress:
    loss, right, count = sums or learner.tally.values()
    return Progress(
        epoch=epoch,
        epochs=learner.recipe.epochs,
        step=learner.step,
        steps=learner.recipe.epochs * learner.steps_in_epoch,
        loss=loss / count if count else math.nan,
        top1=right / count if count else math.nan,
        images_per_s=clock.speed(),
        waiting=clock.waiting(),
        left_s=left_s,
        text=text,
        validation=validation,
    )
