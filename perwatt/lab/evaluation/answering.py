"""Every image through every engine: workers side by side, fed piece by piece, so that memory is bounded."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from perwatt.data import Split
from perwatt.errors import EngineCrashed, EngineError, EngineMissing, EngineRefused, EngineTimeout, InputError
from perwatt.lab import truth
from perwatt.lab.engine import Job, Precision
from perwatt.lab.engines import entry, refusal
from perwatt.lab.evaluation.figures import ranked
from perwatt.lab.evaluation.record import Answers, Row, Status
from perwatt.lab.process import BlockRequest, Started, Worker
from perwatt.lab.record import pack
from perwatt.package.preprocessing import Preprocessing, preprocess

PIECE_BYTES = 128 << 20
_DECODERS = 4
# How far a sum of probabilities may be off 1 where each was rounded to BF16: a unit in the last place before 1.
HALVES_SUM = 2.0**-8
_FATES: tuple[tuple[type[EngineError], Status], ...] = (
    (EngineMissing, "missing"),
    (EngineRefused, "refused"),
    (EngineTimeout, "timeout"),
    (EngineCrashed, "crashed"),
)
MakeWorker = Callable[[str, Job, Path], Worker]
Tell = Callable[[int, int, str], None]


@dataclass
class Lane:
    """One row while it answers."""

    engine: str
    precision: Precision
    worker: Worker | None = None
    started: Started | None = None
    status: Status = "ok"
    reason: str | None = None
    parts: list[tuple[np.ndarray, ...]] = field(default_factory=list)

    def fail(self, status: Status, reason: str) -> None:
        """Note how the engine fell out, and end its process."""
        self.status, self.reason = status, reason
        self.close()

    def close(self) -> None:
        """End the process, if there is one."""
        if self.worker is not None:
            self.worker.close()
            self.worker = None


@dataclass(frozen=True)
class Images:
    """The images to ask about: places in a split, and for each class of the split its place in the network's outputs.

    Broken pictures are skipped and named, or refused.
    """

    split: Split
    places: np.ndarray
    outputs: np.ndarray
    how: Preprocessing
    skip_broken: bool


@dataclass
class Asked:
    """What came of it: places in the split that were asked about, their labels as places in the outputs, pictures that
    were skipped with the reason, the lane that others are held against, and whether the outputs are probabilities
    (None: nobody answered).
    """

    places: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    skipped: dict[str, str] = field(default_factory=dict)
    reference: int | None = None
    probabilities: bool | None = None


def answer(
    lanes: Sequence[Lane],
    images: Images,
    job: Callable[[Lane], Job],
    folder: Path,
    tell: Tell,
    make_worker: MakeWorker = Worker,
) -> Asked:
    """Let every lane answer for all images; the first FP32 lane that can is what the others are held against.

    What goes wrong with an engine is noted in its lane. `folder` holds the inputs meanwhile. Raises InputError for a
    broken picture that is not to be skipped.
    """
    batch = job(lanes[0]).input_shape[0]
    asked = Asked()
    for places, inputs in _pieces(images, batch, asked, tell):
        path = folder / "inputs.npy"
        np.save(path, inputs)
        labels = images.outputs[images.split.labels[places]]
        reference: np.ndarray | None = None
        for number, lane in enumerate(lanes):
            if lane.status != "ok":
                continue
            tell(len(asked.places), len(images.places), f"{lane.engine} {lane.precision}")
            outputs = _outputs(lane, job, path, len(inputs), make_worker)
            if outputs is None:
                continue
            flat = outputs.reshape(-1, outputs.shape[-1])[: len(labels)]
            if not np.isfinite(flat).all():
                lane.fail("invalid", "an output has numbers that are not finite")
                continue
            if asked.reference is None and lane.precision == "fp32":
                asked.reference = number
            if number == asked.reference:
                reference = flat
            if asked.probabilities is None:  # of the network, once: the first piece of the first that answers
                asked.probabilities = _are_probabilities(flat)
            scores = flat if asked.probabilities and _are_probabilities(flat) else _softmax(flat)
            lane.parts.append(_said(flat, scores, labels, None if number == asked.reference else reference))
        asked.places = np.concatenate([asked.places, places])
        asked.labels = np.concatenate([asked.labels, labels])
        tell(len(asked.places), len(images.places), "")
    if not len(asked.places):
        raise InputError(f"pictures: expected at least one that can be read, all {len(images.places)} are broken")
    if asked.reference is not None and lanes[asked.reference].status != "ok":
        asked.reference = None
    return asked


def row_of(lane: Lane, threads: int, reference: bool) -> Row:
    """Return a lane as a row of the Record, its figures not yet computed."""
    started = lane.started
    answers = None
    if lane.status == "ok" and lane.parts:
        said, rank, confidence, own, errors = (np.concatenate(each) for each in zip(*lane.parts, strict=True))
        compared = not reference and not np.isnan(errors).any()
        answers = Answers(
            said=pack(said),
            rank=pack(rank),
            confidence=pack(confidence),
            label_confidence=pack(own),
            errors=pack(errors) if compared else None,
        )
    return Row(
        engine=lane.engine,
        precision=lane.precision,
        status=lane.status,
        reason=lane.reason,
        threads=threads,
        version=started.loaded.version if started else None,
        precision_reported=started.loaded.precision if started else None,
        options=dict(started.loaded.options) if started else {},
        answers=answers,
        figures=None,
    )


def _pieces(images: Images, batch: int, asked: Asked, tell: Tell) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield places and inputs [batches, batch, channels, height, width]; the last image fills up the last batch."""
    how, split = images.how, images.split

    def made(place: int) -> np.ndarray | InputError:
        try:
            return preprocess(split.photo(place), how)
        except InputError as error:
            return error

    size = max(1, PIECE_BYTES // (4 * how.channels * math.prod(how.size) * batch)) * batch
    with ThreadPoolExecutor(_DECODERS) as pool:
        for start in range(0, len(images.places), size):
            part = images.places[start : start + size]
            tell(start, len(images.places), "preprocessing")
            kept, inputs = [], []
            for place, found in zip(part, pool.map(made, map(int, part)), strict=True):
                if isinstance(found, np.ndarray):
                    kept.append(int(place))
                    inputs.append(found)
                elif images.skip_broken:
                    asked.skipped[split.name(int(place))] = str(found)
                else:
                    raise InputError(f"{found}; --skip-broken leaves such pictures out") from found
            if kept:
                inputs += inputs[-1:] * (-len(inputs) % batch)
                yield np.array(kept), np.stack(inputs).reshape(-1, batch, how.channels, *how.size)


def _outputs(
    lane: Lane, job: Callable[[Lane], Job], path: Path, batches: int, make_worker: MakeWorker
) -> np.ndarray | None:
    """Return a lane's outputs [batches, batch, values], None when the engine fell out."""
    try:
        if lane.worker is None:
            known = entry(lane.engine)
            if known is not None and lane.precision not in known.precisions:
                raise EngineRefused(refusal(known, lane.precision))
            lane.worker = make_worker(lane.engine, job(lane), path)
            lane.started = lane.worker.start()
            if lane.started.loaded.precision != lane.precision:
                lane.fail("invalid", f"asked for {lane.precision}, the engine ran {lane.started.loaded.precision}")
                return None
        else:
            lane.worker.feed(path)
        found = lane.worker.block(BlockRequest(0.0, batches, batches, 0, tuple(range(batches)), 0))
    except EngineError as error:
        fate: Status = next((status for kind, status in _FATES if isinstance(error, kind)), "crashed")
        lane.fail(fate, str(error))
        return None
    batch = job(lane).input_shape[0]
    return np.stack([found.outputs[run].reshape(batch, -1) for run in range(batches)])


def _are_probabilities(outputs: np.ndarray) -> bool:
    return bool(outputs.min() >= 0 and np.abs(outputs.sum(1, dtype=np.float64) - 1).max() < HALVES_SUM)


def _softmax(outputs: np.ndarray) -> np.ndarray:
    raised = np.exp(outputs.astype(np.float64) - outputs.max(1, keepdims=True))
    scores: np.ndarray = raised / raised.sum(1, keepdims=True)
    return scores


def _said(
    outputs: np.ndarray, scores: np.ndarray, labels: np.ndarray, reference: np.ndarray | None
) -> tuple[np.ndarray, ...]:
    """Return what is kept of outputs [images, values]: said, rank, confidence, the label's, error (NaN: none)."""
    said, rank = ranked(outputs, labels)
    rows = np.arange(len(labels))
    errors = np.full(len(labels), np.nan)
    if reference is not None:
        found = [truth.relative_error(ours, theirs) for ours, theirs in zip(outputs, reference, strict=True)]
        errors = np.array([np.nan if error is None else error for error in found])
    return said, rank, scores[rows, said], scores[rows, labels], errors
