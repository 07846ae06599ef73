"""A run from its request to its package: checks, the loop, the best weights, the test, the verified export."""

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from perwatt import __version__
from perwatt.data import DataSet
from perwatt.machine import this_machine
from perwatt.package.atomic_file import write_whole
from perwatt.package.package import JSON, NAME
from perwatt.package.preprocessing import Preprocessing
from perwatt.train import curves, record, request
from perwatt.train.batches import PLAIN, Batches
from perwatt.train.events import EventLog
from perwatt.train.export import publish
from perwatt.train.learner import Learner, Score, class_weights
from perwatt.train.loop import Ending, Progress, Run, Standing, best_weights, fit, resume
from perwatt.train.module import TrainingForm, initialise, training_form
from perwatt.train.request import Look, Request, Start

EVENTS = "events.jsonl"
# The package that a fine-tuning run began with, for its resumption.
START = "start.perwatt"


@dataclass(frozen=True)
class Watching:
    """How a run tells of itself: looks at pictures, shows progress, says lines, and asks whether to stop."""

    look: Look
    show: Callable[[Progress], None]
    say: Callable[[str], None]
    doing: Callable[[str], None]
    stopped: Callable[[], bool]


@dataclass(frozen=True)
class Trained:
    """How a run ended: its best epoch's validation, the test if there was one, and the package; None: interrupted."""

    ending: Ending
    folder: Path
    best_epoch: int | None
    validation: Score | None
    test: Score | None
    package: Path | None


def train(asked: Request, watching: Watching, *, again: bool = False, checkpoint_steps: int | None = None) -> Trained:
    """Train, and publish the best weights as a package in the run's folder. With `again` go on where it was stopped.

    Everything that can be found out beforehand is checked before the first step and before a folder is made. Raises
    PerwattError's children; a run that began keeps its last checkpoint.
    """
    request.require_device(asked.device, asked.recipe)
    if not again:
        request.require_new(asked.out)
        if asked.package is not None:  # as it was given, not below the run's folder, where its copy will lie
            asked = replace(asked, package=asked.package.absolute())
    # What needs no picture first: decoding a large set takes minutes.
    data = request.opened(asked)
    begin = request.start(asked, data.classes)
    request.require_space(asked, begin.graph)
    data, digests = request.prepared_data(asked, data, watching.look, watching.say)
    request.require_moments(asked.recipe, begin.graph, len(data.split("train")))
    module = training_form(begin.graph)
    if asked.package is None:
        initialise(module, asked.network, asked.seed)
    if not again:
        asked = _new_folder(replace(asked, digests=digests))
    with exact(asked), _batches(asked, data, begin.preprocessing) as (training, validation):
        for batches in (training, validation):
            batches.prepare(lambda done, total: watching.doing(f"reading pictures: {done:,} of {total:,}"))
        weights = class_weights(data.split("train").labels, len(data.classes)) if asked.recipe.class_weights else None
        learner = Learner(
            module.to(asked.device), asked.recipe, asked.seed, training.steps(asked.recipe.batch), weights
        )
        with EventLog(asked.out / EVENTS, time.time) as log:
            standing = _opened(learner, asked, data, log, watching, again)
            run = Run(
                asked.out, training, validation, log, watching.show, watching.stopped, checkpoint_steps=checkpoint_steps
            )
            ending = fit(learner, run, standing)
            if ending == "interrupted":
                log.append("interrupted", step=learner.step)
                return Trained(ending, asked.out, standing.best_epoch, None, None, None)
            return _ended(learner, asked, data, begin, log, watching, ending)


@contextmanager
def exact(asked: Request) -> Iterator[None]:
    """Make PyTorch's CPU arithmetic repeat itself: a fixed number of threads, no operator that depends on chance."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory
    torch.set_num_threads(asked.threads)
    # A guard for operators that read what they never wrote; it costs a pass over memory for every tensor made.
    torch.utils.deterministic.fill_uninitialized_memory = False
    # On a GPU this would forbid operators that training needs, and slow others; there runs differ in the last digits.
    torch.use_deterministic_algorithms(asked.device == "cpu")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = filling


@contextmanager
def _batches(asked: Request, data: DataSet, how: Preprocessing) -> Iterator[tuple[Batches, Batches]]:
    threads = max(1, len(this_machine().cpus))
    with (
        Batches(data.split("train"), how, asked.recipe, asked.seed, threads) as training,
        Batches(data.split("validation"), how, PLAIN, asked.seed, threads) as validation,
    ):
        yield training, validation


def _new_folder(asked: Request) -> Request:
    """Make the run's folder with what a resumed run needs; return the request as it stands there."""
    if asked.package is not None:
        write_whole(asked.out / START, asked.package.read_bytes())
        asked = replace(asked, package=Path(START))
    request.save(asked)
    return asked


def _opened(
    learner: Learner, asked: Request, data: DataSet, log: EventLog, watching: Watching, again: bool
) -> Standing:
    if not again:
        log.append("started", **_facts(learner, asked, data))
        return Standing()
    standing, faults = resume(learner, asked.out)
    for fault in faults:
        watching.say(f"passed over: {fault}")
    for left in asked.out.rglob(".perwatt-*.part"):  # what a killed writer was writing
        left.unlink(missing_ok=True)
    if learner.step == 0:
        log.append("started", **_facts(learner, asked, data))
    log.append("resumed", step=learner.step, torch=torch.__version__)
    watching.say(f"goes on behind step {learner.step:,}")
    return standing


def _facts(learner: Learner, asked: Request, data: DataSet) -> dict[str, Any]:
    return {
        "request": asked.as_object(),
        "steps_in_epoch": learner.steps_in_epoch,
        "parameters": sum(each.numel() for each in learner.module.parameters()),
        "data": {
            "name": data.name,
            "form": data.form,
            "classes": list(data.classes),
            "pictures": {name: len(split) for name, split in data.splits.items()},
        },
        "machine": this_machine().facts(),
        "versions": {"perwatt": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def _ended(
    learner: Learner,
    asked: Request,
    data: DataSet,
    begin: Start,
    log: EventLog,
    watching: Watching,
    ending: Ending,
) -> Trained:
    """Take the best weights, test them, draw the curves, verify and publish."""
    best = best_weights(asked.out)
    module = deepcopy(learner.average)
    module.load_state_dict(dict(best.tensors))
    learner.average = module
    validation = Score(**best.values["validation"])
    test = None
    if "test" in data.splits and len(data.split("test")):
        watching.doing("testing")
        with Batches(
            data.split("test"), begin.preprocessing, PLAIN, asked.seed, max(1, len(this_machine().cpus))
        ) as batches:
            test = learner.score(batches.in_order(asked.recipe.batch))
    found: dict[str, JSON] = {
        "epoch": best.values["epoch"],
        "validation": asdict(validation),
        "test": None if test is None else asdict(test),
    }
    log.append("ended", step=learner.step, ending=ending, **found)
    curves.write(log.path, f"{begin.name} on {data.name}", asked.out)
    path = asked.out / f"{begin.name}-{data.name}.perwatt"
    assert isinstance(module, TrainingForm)
    publish(
        module.to("cpu", memory_format=torch.contiguous_format),
        begin.deployed,
        data.split("validation"),
        begin.preprocessing,
        data.classes,
        path,
        name=path.stem if NAME.fullmatch(path.stem) else begin.name,
        training={**_evidence(asked, data), **found},
        threads=asked.threads,
        tell=watching.doing,
    )
    log.append("published", package=path.name, bytes=path.stat().st_size)
    record.write(asked.out)
    return Trained(ending, asked.out, int(best.values["epoch"]), validation, test, path)


def _evidence(asked: Request, data: DataSet) -> dict[str, JSON]:
    """Return what a package says of its training, beside the scores."""
    return {
        "network": asked.network,
        "size": asked.size,
        "data": data.name,
        "digests": dict(asked.digests),
        "seed": asked.seed,
        "recipe": asked.recipe.as_object(),
    }
