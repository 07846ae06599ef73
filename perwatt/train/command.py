"""perwatt train: from the words of the command line to a run, shown on a terminal."""

import json
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console

from perwatt.data.look import look
from perwatt.errors import InputError
from perwatt.machine import this_machine
from perwatt.networks import NETWORKS
from perwatt.package import read as read_package
from perwatt.train import request
from perwatt.train.display import Display
from perwatt.train.recipe import recipe_for
from perwatt.train.request import Device, Request
from perwatt.train.training import Trained, Watching, train

# Fine-tuning moves weights that are already good: a tenth of the rate that finds them.
FINE_TUNING = 0.1


def run_training(
    given: Mapping[str, Any], out: Path | None, again: bool, to: Console, errors: Console, *, as_json: bool
) -> Trained:
    """Train as asked, show it, and print how it ended. `given` holds the options; None are those left out.

    Raises InputError when options contradict each other or a resumed run.
    """
    asked, torch_version = _resumed(given, out) if again else (_asked(given, out), torch.__version__)
    with Display(errors) as display, _polite_stop() as wish:
        if torch_version != torch.__version__:
            display.say(
                f"began with PyTorch {torch_version}, goes on with {torch.__version__}: not bit-identical any more"
            )
        watching = Watching(
            look=lambda data: look(
                data, lambda done, all_: display.doing(f"looking at pictures: {done:,} of {all_:,}")
            ),
            show=display,
            say=display.say,
            doing=display.doing,
            stopped=lambda: bool(wish),
        )
        trained = train(asked, watching, again=again)
    _print(trained, asked, to, as_json=as_json)
    return trained


def _asked(given: Mapping[str, Any], out: Path | None) -> Request:
    """Return the request that the options make. Raises InputError."""
    data, package = given["data"], given["package"]
    if not data:
        raise InputError("train: expected a data set, got none; give a folder or a name such as digits")
    name, grey = given["network"], False
    if package is not None:
        if name:
            raise InputError(f"--from: expected no --network, a package has its own, got {name!r}; leave one out")
        name = (start := read_package(package)).name
        grey = start.preprocessing.channel_order == "grey"
    elif name not in NETWORKS:
        raise InputError(f"--network: expected one of {', '.join(NETWORKS)}, got {name!r}; choose one of these")
    else:
        grey = NETWORKS[name].channel_order == "grey"
    device: Device = given["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    names = (
        "epochs", "batch", "accumulate", "optimizer", "learning_rate", "weight_decay", "label_smoothing", "mixup",
        "augment", "flip", "ema", "patience", "metric", "class_weights", "precision",
    )  # fmt: skip
    changes = {each: given[each] for each in names}
    if changes["precision"] is None and device == "cuda":
        changes["precision"] = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    recipe = recipe_for(given["recipe"] or "standard", name, grey=grey, **changes)
    if package is not None and given["learning_rate"] is None:
        recipe = recipe_for(
            given["recipe"] or "standard", name, grey=grey,
            **changes | {"learning_rate": recipe.learning_rate * FINE_TUNING},
        )  # fmt: skip
    return Request(
        data=str(data),
        network=name,
        size=given["size"],
        recipe=recipe,
        seed=1 if given["seed"] is None else given["seed"],
        out=out or Path("runs") / f"{Path(data).name}-{name}",
        package=package,
        skip_broken=bool(given["skip_broken"]),
        device=device,
        threads=given["threads"] or this_machine().cores,
    )


def _resumed(given: Mapping[str, Any], out: Path | None) -> tuple[Request, str]:
    """Return the request of a run that goes on. Raises InputError when an option says otherwise than the run."""
    if out is None:
        raise InputError("--resume: expected the run's folder with --out, got none; give it")
    asked, torch_version = request.load(out)
    recipe = asked.recipe.as_object()
    known = {**asked.as_object(), **recipe}
    for name, value in given.items():
        if value is None or value == "" or name == "recipe" or (name == "skip_broken" and not value):
            continue  # what was left out
        before = known[name]
        if str(value) != str(before):
            raise InputError(
                f"--resume: expected the options that the run began with, got {name} {value}, it began with {before}; "
                "leave the option out or train anew with another --out"
            )
    if given["recipe"] is not None:
        raise InputError("--resume: expected no --recipe, the run has its own; leave it out")
    return asked, torch_version


@contextmanager
def _polite_stop() -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM end the step under way first; a second Ctrl-C ends at once."""
    wish: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if wish:
            raise KeyboardInterrupt
        wish.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print(trained: Trained, asked: Request, to: Console, *, as_json: bool) -> None:
    if as_json:
        found = {
            "ending": trained.ending,
            "folder": str(trained.folder),
            "best_epoch": trained.best_epoch,
            "validation": trained.validation and asdict(trained.validation),
            "test": trained.test and asdict(trained.test),
            "package": None if trained.package is None else str(trained.package),
        }
        print(json.dumps(found, indent=2, allow_nan=False))
        return
    if trained.ending == "interrupted":
        lines = [f"stopped; go on with: perwatt train --resume --out {trained.folder}"]
    else:
        assert trained.validation is not None
        why = " (stopped early: no better epoch came)" if trained.ending == "early" else ""
        lines = [
            f"best epoch {(trained.best_epoch or 0) + 1}{why}: validation top-1 "
            f"{100 * trained.validation.top1:.2f} % of {trained.validation.count:,}"
        ]
        if trained.test is not None:
            lines.append(f"test top-1 {100 * trained.test.top1:.2f} % of {trained.test.count:,}")
        lines += [f"package: {trained.package}", f"curves:  {trained.folder / 'curves.png'}"]
    to.print("\n".join(lines), markup=False, soft_wrap=True)
