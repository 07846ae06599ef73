"""An evaluation: a package and a labelled data set in, a Record out."""

import datetime
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import perwatt
from perwatt.data import DataSet, Split, fingerprint, open_data
from perwatt.errors import DataError, InputError, InvalidPackage, OutputError
from perwatt.graph import read, with_batch
from perwatt.lab.bench import commit
from perwatt.lab.engine import PRECISIONS, Job, Precision
from perwatt.lab.engines import ENGINES, REFERENCE, entry
from perwatt.lab.evaluation import figures
from perwatt.lab.evaluation.answering import Images, Lane, MakeWorker, Tell, answer, row_of
from perwatt.lab.evaluation.record import DataFacts, EvaluationRecord, PackageFacts
from perwatt.lab.lane import NULL
from perwatt.lab.process import Worker
from perwatt.lab.record import pack
from perwatt.lab.record_file import ensure_writable
from perwatt.machine import this_machine
from perwatt.package import Package
from perwatt.package import read as read_package

PATIENCE_S = 60.0
# Splits that nothing was learned from come first.
PREFERRED = ("test", "validation", "train")


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate: `data` is what perwatt data reads. Without `split`: test, else validation, else train.

    `images` is the most images to ask about, spread evenly over the classes; None for all. `command` is kept as it is.
    """

    package: Path
    data: str
    split: str | None = None
    engines: tuple[str, ...] = ("perwatt",)
    precisions: tuple[str, ...] = ("fp32",)
    batch: int = 16
    images: int | None = None
    threads: int | None = None
    skip_broken: bool = False
    out: Path = Path("evaluation")
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """A Record, and where its images are: places in a split."""

    record: EvaluationRecord
    split: Split
    places: np.ndarray


def evaluate(request: EvaluationRequest, tell: Tell, make_worker: MakeWorker = Worker) -> Evaluation:
    """Ask every engine about every image; the Record is complete with its figures, and nothing is written yet.

    The reference (ONNX Runtime with its optimisations off, in FP32) answers too; others are held against it, or against
    the first FP32 row where it is missing. Engines that are missing, refuse or crash are rows that say so. Raises
    InputError, DataError or PackageError when the request cannot be met.
    """
    _check_request(request)
    package, data = read_package(request.package), open_data(request.data)
    ensure_writable(request.out)
    name = request.split or next(each for each in PREFERRED if each in data.splits)
    split = data.split(name)
    notes = ["the split is train: a network that has learned these images knows them"] if name == "train" else []
    classes, outputs = _classes(package, data, notes)
    machine = this_machine()
    threads = request.threads or machine.cores
    start, created = time.monotonic(), datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    lanes = [Lane(REFERENCE.name, "fp32")]
    lanes += [Lane(engine, precision) for precision in _fp32_first(request.precisions) for engine in request.engines]
    images = Images(split, _places(split, request.images), outputs, package.preprocessing, request.skip_broken)
    with tempfile.TemporaryDirectory(prefix="perwatt-") as folder:
        try:
            job = _job(package, request.batch, Path(folder), threads)
            asked = answer(lanes, images, job, Path(folder), tell, make_worker)
        except OSError as error:
            raise OutputError(
                f"{folder}: expected room for a network and its inputs, got: {error.strerror or error}; free some space"
            ) from error
        finally:
            for lane in lanes:
                lane.close()
    if asked.reference is None:
        notes.append("nothing to compare with: no row in FP32")
    elif asked.reference > 0:
        other = lanes[asked.reference].engine
        notes.append(f"{other} in FP32 is what others are held against, for the reference is {lanes[0].status}")
    record = _named(
        figures.complete(
            EvaluationRecord(
                kind="evaluation",
                schema_version=1,
                created=created,
                perwatt_version=perwatt.__version__,
                commit=commit(),
                command=request.command,
                machine=machine.facts(),
                machine_id=machine.host_id,
                notes=tuple(notes),
                duration_s=time.monotonic() - start,
                package=_package_facts(package, len(classes)),
                data=DataFacts(
                    name=data.name,
                    form=data.form,
                    split=name,
                    fingerprint=_fingerprint(data, name, asked.places),
                    classes=classes,
                    labels=pack(asked.labels),
                    skipped=asked.skipped,
                    names={},
                ),
                batch=request.batch,
                probabilities=asked.probabilities is not False,
                reference=asked.reference,
                rows=tuple(row_of(lane, threads, place == asked.reference) for place, lane in enumerate(lanes)),
                digest="",
            )
        ),
        split,
        asked.places,
    )
    return Evaluation(record, split, asked.places)


def _check_request(request: EvaluationRequest) -> None:
    for name in request.engines or ("none",):
        if entry(name) is None or name in (REFERENCE.name, NULL):
            known = ", ".join(each.name for each in ENGINES if each.name != NULL)
            raise InputError(f"engine: expected some of {known}, got {name!r}; the reference answers in any case")
    for name in request.precisions or ("none",):
        if name not in PRECISIONS:
            raise InputError(f"precision: expected some of {', '.join(PRECISIONS)}, got {name!r}")
    for what, number in (("batch", request.batch), ("images", request.images), ("threads", request.threads)):
        if number is not None and number < 1:
            raise InputError(f"{what}: expected a whole number from 1, got {number}")


def _fp32_first(precisions: tuple[str, ...]) -> tuple[Precision, ...]:
    return tuple(each for each in PRECISIONS if each in precisions)  # fp32 is the first of all


def _classes(package: Package, data: DataSet, notes: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the classes of the outputs, and for each class of the data its place among them. Raises DataError."""
    graph = read(package.model, batch=1)
    values = math.prod(graph.values[graph.outputs[0]].shape[1:])
    if package.labels is None:
        if len(data.classes) != values:
            raise DataError(
                f"{data.source}: expected {values} classes, as {package.name} has outputs, got {len(data.classes)}; "
                "choose the data it was made for"
            )
        notes.append("the package names no classes: the data's are taken for its outputs, in their order")
        return data.classes, np.arange(values)
    known = {label: place for place, label in enumerate(package.labels)}
    strange = [name for name in data.classes if name not in known]
    if strange:
        raise DataError(
            f"{data.source}: expected classes that {package.name} knows ({', '.join(package.labels[:5])}"
            f"{', ...' if len(known) > 5 else ''}), got {strange[0]!r}{_more(strange)}; rename the folders or labels"
        )
    return package.labels, np.array([known[name] for name in data.classes])


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _places(split: Split, images: int | None) -> np.ndarray:
    """Return the places to ask about: all, or so many, spread evenly over the classes."""
    if not len(split):
        raise DataError("the split: expected labelled pictures, got none; name another with --split")
    if images is None or images >= len(split):
        return np.arange(len(split))
    order = np.argsort(split.labels, kind="stable")
    return np.sort(order[np.unique(np.linspace(0, len(split) - 1, images).round().astype(int))])


def _job(package: Package, batch: int, folder: Path, threads: int) -> Callable[[Lane], Job]:
    """Write the network at this batch into the folder; return what an engine is asked to load, by lane."""
    content = with_batch(package.model, batch)
    graph = read(content)
    path = folder / "model.onnx"
    path.write_bytes(content)
    shape, wanted = graph.values[graph.inputs[0]].shape, (batch, package.preprocessing.channels)
    if len(graph.inputs) != 1 or shape != (*wanted, *package.preprocessing.size):
        raise InvalidPackage(
            f"{package.name}: expected a network with one input {[*wanted, *package.preprocessing.size]}, as its "
            f"preprocessing makes, got {list(shape)}; make the package again"
        )

    def job(lane: Lane) -> Job:
        known = entry(lane.engine)
        assert known is not None
        return Job(
            model_path=str(path),
            input_name=graph.inputs[0],
            input_shape=shape,
            output_name=graph.outputs[0],
            precision=lane.precision,
            threads=threads,
            device=known.device,
            patience_s=PATIENCE_S,
        )

    return job


def _package_facts(package: Package, classes: int) -> PackageFacts:
    return PackageFacts(
        name=package.name,
        version=package.version,
        model_sha256=package.model_sha256,
        preprocessing={key: json.dumps(value) for key, value in asdict(package.preprocessing).items()},
        classes=classes,
        labels=package.labels,
    )


def _fingerprint(data: DataSet, name: str, places: np.ndarray) -> str:
    """Return a digest of what was asked about: the split, and which places of it."""
    digest = hashlib.sha256(fingerprint(data)[name].encode())
    digest.update(np.ascontiguousarray(places, dtype="<i8").tobytes())
    return digest.hexdigest()[:16]


def _named(record: EvaluationRecord, split: Split, places: np.ndarray) -> EvaluationRecord:
    """Return the Record with the names of the pictures that its figures point to."""
    wanted = sorted({place for row in record.rows if row.figures for place in row.figures.mistakes})
    names = {str(place): split.name(int(places[place])) for place in wanted}
    made = record.model_copy(update={"data": record.data.model_copy(update={"names": names})})
    return made.model_copy(update={"digest": figures.digest(made)})
