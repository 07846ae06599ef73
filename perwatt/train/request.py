"""What is asked of a run, and everything that is checked before the first step: a fault found late costs hours."""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from perwatt import __version__
from perwatt.data import DataSet, held_out, open_data
from perwatt.data.examination import Examination, examination, require_whole, some, without_broken
from perwatt.data.look import Seen, pixel_fingerprint
from perwatt.errors import DataError, InputError, OutputError, TrainingError
from perwatt.graph import Graph
from perwatt.machine import size_text
from perwatt.networks import NETWORKS, build
from perwatt.package import read as read_package
from perwatt.package.atomic_file import write_whole
from perwatt.package.preprocessing import Preprocessing
from perwatt.train.fine_tune import fine_tuned
from perwatt.train.recipe import Recipe, from_object

Device = Literal["cpu", "cuda"]
RUN_FILE = "run.json"
VERSION = 1
# Beside checkpoints: the log, curves, the package's container, and a margin.
_SPARE_BYTES = 32 << 20
# Broken pictures that are named when they are left out.
_NAMED = 20

Look = Callable[[DataSet], Mapping[str, tuple[Seen, ...]]]


@dataclass(frozen=True)
class Request:
    """One run: what learns from what, how, where it is kept.

    `package` is one whose network goes on learning, or None for a built-in `network`; a copy of it is kept in the run's
    folder. `size` None is the network's own.
    """

    data: str
    network: str
    size: int | None
    recipe: Recipe
    seed: int
    out: Path
    package: Path | None = None
    skip_broken: bool = False
    device: Device = "cpu"
    threads: int = 1
    digests: Mapping[str, str] = field(default_factory=dict)

    def as_object(self) -> dict[str, Any]:
        """Return the request as plain values for JSON; the folder is where it stands."""
        content = asdict(self)
        del content["out"]
        package = None if self.package is None else str(self.package)
        return content | {"recipe": self.recipe.as_object(), "digests": dict(self.digests), "package": package}


def save(request: Request) -> None:
    """Write what a resumed run needs to know into the run's folder. Raises OutputError."""
    content = {
        "version": VERSION,
        "perwatt": __version__,
        "torch": torch.__version__,
        "request": request.as_object(),
    }
    write_whole(request.out / RUN_FILE, (json.dumps(content, indent=2) + "\n").encode())


def load(folder: Path) -> tuple[Request, str]:
    """Return the request of a run's folder and the PyTorch version it ran with. Raises TrainingError."""
    path = folder / RUN_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise TrainingError(f"{path}: expected version {VERSION}, got {content['version']}; use its own perwatt")
        asked = dict(content["request"])
        recipe = from_object(asked.pop("recipe"))
        package = asked.pop("package")
        request = Request(**asked, recipe=recipe, out=folder, package=None if package is None else Path(package))
        return request, str(content["torch"])
    except FileNotFoundError as error:
        raise TrainingError(
            f"{folder}: expected the folder of a run to resume, found no {RUN_FILE}; check --out"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(f"{path}: expected what a run writes, got a damaged file: {error}; train anew") from error


def opened(request: Request) -> DataSet:
    """Return the data set to learn from as it is kept, with no picture decoded yet.

    Raises DataError when it is none, or has nothing to tell apart.
    """
    data = open_data(request.data)
    _require_classes(data)
    return data


def prepared_data(
    request: Request, data: DataSet, look: Look, say: Callable[[str], None]
) -> tuple[DataSet, dict[str, str]]:
    """Return the data set to learn from, with a validation split, and its fingerprint. Raises DataError,
    and TrainingError when it is not what the run began with.

    Everything that could stop training later is looked for: broken pictures (left out with `skip_broken`), classes
    with none or one, nothing to tell apart.
    """
    seen = look(data)
    digests = pixel_fingerprint(data, seen)
    if request.digests and dict(request.digests) != digests:
        raise TrainingError(
            f"{request.data}: expected the data that the run in {request.out} began with, got other pictures or "
            "labels; restore them or train anew with another --out"
        )
    _warn_of_duplicates(examination(data, seen), say)
    if request.skip_broken:
        _tell_broken(seen, say)
        data = without_broken(data, seen)
        _require_classes(data)
    else:
        require_whole(data, seen)
    data = held_out(data, request.seed)
    if not len(data.split("validation")):
        raise DataError(f"{data.source}: expected pictures in the validation split, got none; add some or remove it")
    return data, digests


def _require_classes(data: DataSet) -> None:
    """Raise DataError unless there are classes to tell apart, and of each enough pictures to train on."""
    counts = [int((data.split("train").labels == label).sum()) for label in range(len(data.classes))]
    if len(data.classes) < 2:
        raise DataError(f"{data.source}: expected at least 2 classes, got {some(data.classes)}; nothing to tell apart")
    empty = [name for name, count in zip(data.classes, counts, strict=True) if count == 0]
    if empty:
        raise DataError(
            f"{data.source}: expected pictures of each class to train on, got none of {some(empty)}; add some"
        )
    single = [name for name, count in zip(data.classes, counts, strict=True) if count == 1]
    if single:
        raise DataError(
            f"{data.source}: expected at least 2 pictures of each class to train on, got 1 of {some(single)}; "
            "add pictures or remove the class"
        )


def _tell_broken(seen: Mapping[str, Sequence[Seen]], say: Callable[[str], None]) -> None:
    faults = [f"{name}: {each.fault}" for name, pictures in seen.items() for each in pictures if each.fault is not None]
    for fault in faults[:_NAMED]:
        say(f"left out  {fault}")
    if len(faults) > _NAMED:
        say(f"left out  {len(faults) - _NAMED} more broken pictures; perwatt data names them")


def _warn_of_duplicates(found: Examination, say: Callable[[str], None]) -> None:
    """Say when pictures that are learned from will be asked again: no reason to stop, but scores will flatter."""
    split = "validation" not in found.data.splits
    doubtful = [each for each in found.duplicates if len(each.splits) > 1 or (split and "train" in each.splits)]
    if doubtful:
        say(
            f"{len(doubtful)} pictures are there more than once and may be learned from and validated on: scores may "
            f"look better than they are; perwatt data {found.data.source} names them"
        )


@dataclass(frozen=True)
class Start:
    """What a run begins with: the network as it trains and as it is deployed, and how photographs become input."""

    name: str
    graph: Graph
    deployed: Graph
    preprocessing: Preprocessing


def start(request: Request, labels: Sequence[str]) -> Start:
    """Return the built-in network at the request's size, or the package's own network, for these classes.

    Raises InputError when there is no such network or the size is too small for it, NetworkError when the package's
    network cannot be trained.
    """
    if request.package is not None:
        package = read_package(request.out / request.package if not request.package.is_absolute() else request.package)
        graph = fine_tuned(package, labels, request.seed, request.size)
        return Start(package.name, graph, graph, _at_size(package.preprocessing, graph))
    classes = len(labels)
    deployed = build(request.network, batch=1, classes=classes, size=request.size)
    network = NETWORKS[request.network]
    graph = deployed
    if network.auxiliary:
        graph = build(request.network, batch=1, classes=classes, size=request.size, auxiliary=True)
    how = Preprocessing(
        size=network.input_size,
        resize_to=network.resize_to,
        interpolation=network.interpolation,
        channel_order=network.channel_order,
        mean=network.mean,
        scale=network.scale,
    )
    return Start(request.network, graph, deployed, _at_size(how, deployed))


def _at_size(how: Preprocessing, graph: Graph) -> Preprocessing:
    """Return the preprocessing for the size of the Graph's input: what is cut off keeps its share."""
    height, width = graph.values[graph.inputs[0]].shape[2:]
    if how.size == (height, width):
        return how
    resize_to = max(height, width, round(how.resize_to * min(height, width) / min(how.size)))
    return replace(how, size=(height, width), resize_to=resize_to)


def require_new(folder: Path) -> None:
    """Raise TrainingError when there is a run in the folder."""
    if (folder / RUN_FILE).exists():
        raise TrainingError(
            f"{folder}: expected a new folder, there is a run in it; go on with --resume or choose another --out"
        )


def require_device(device: str, recipe: Recipe) -> None:
    """Raise InputError when the device is not here or cannot train at the recipe's precision."""
    if device not in get_args(Device):
        raise InputError(f"device: expected one of {', '.join(get_args(Device))}, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: expected a GPU that PyTorch can use, there is none; leave --device out for the CPU")
    if device == "cpu" and recipe.precision != "fp32":
        raise InputError(
            f"precision: expected fp32 on a CPU, where half precision trains slower, got {recipe.precision}; "
            "leave --precision out"
        )


def require_moments(recipe: Recipe, graph: Graph, pictures: int) -> None:
    """Raise InputError when a batch normalisation would see a single number of a channel: it has no variance."""
    images = min(recipe.batch, pictures)
    part = math.ceil(images / recipe.accumulate)
    least = images - part * (math.ceil(images / part) - 1)  # the last part may be smaller
    for node in graph.nodes:
        if node.operator == "BatchNormalization":
            numbers = least * math.prod(graph.values[node.inputs[0]].shape[2:])
            if numbers < 2:
                raise InputError(
                    f"batch: expected at least 2 images in each part of a step, over which {graph.name} normalises "
                    f"maps of one pixel at {node.name!r}, got {least}; enlarge --batch or --size, or lower --accumulate"
                )


def require_space(request: Request, graph: Graph) -> None:
    """Raise OutputError when the folder's disk has no room for the checkpoints and the package."""
    weights = sum(array.nbytes for array in graph.constants.values())
    # The weights, their average, the optimiser's one or two sums; two checkpoints and a third being written; best and
    # package.
    copies = 1 + bool(request.recipe.ema) + (2 if request.recipe.optimizer == "adamw" else 1)
    needed = 3 * copies * weights + 2 * weights + _SPARE_BYTES
    folder = request.out
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"{request.out}: expected {size_text(needed)} of disk for checkpoints and package, {size_text(free)} are "
            "free; make room or choose another --out"
        )
