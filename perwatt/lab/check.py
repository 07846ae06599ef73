"""Check a Record: compute everything that was printed again from its raw samples, and say where it differs."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from perwatt.errors import RecordError
from perwatt.lab import figures, truth
from perwatt.lab.metering import devices_of, edges_s
from perwatt.lab.record import Block, Reading, Record, Reference, Row, Sample, unpack

# Sums may be rounded differently by another NumPy; anything a person can see is larger.
SAME_FIGURE = 1e-9
SAME_ERROR = 1e-5  # a relative error near rounding is itself the difference of nearly equal numbers
SMALLEST_ERROR = 1e-9
_EDGE_S = 1e-5  # sums of seconds since the start, rounded


@dataclass(frozen=True)
class Finding:
    """One place where a Record does not follow from itself; `where` is its path, such as `rows[2].figures.drift`."""

    where: str
    printed: str
    recomputed: str

    def __str__(self) -> str:
        return f"{self.where}: printed {self.printed}, recomputed {self.recomputed}"


def check(record: Record) -> list[Finding]:
    """Return every place where the Record contradicts its raw samples; an empty list means VALID.

    An INVALID row is no fault of the Record: it says so itself. A partial Record is VALID when it says it is partial.
    """
    found = [*_raw(record)]
    if found:  # figures of raw samples that contradict each other mean nothing, and may not be computable
        return found
    return [*_outputs(record), *differences("", record.model_dump(), figures.complete(record).model_dump())]


def is_valid(record: Record) -> bool:
    """Return whether the Record follows from its raw samples."""
    return not check(record)


def require_valid(record: Record, name: str) -> None:
    """Raise RecordError with the first place that differs; `name` says which Record."""
    found = check(record)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise RecordError(f"{name}: INVALID: {found[0]}{more}; take the Record from its source again")


def _raw(record: Record) -> Iterator[Finding]:
    """Yield contradictions among the raw samples themselves."""
    blocks = [(f"rows[{index}].blocks[{each}]", block) for index, row in enumerate(record.rows)
              for each, block in enumerate(row.blocks)]  # fmt: skip
    if record.noise is not None:
        blocks += [(f"noise.blocks[{each}]", block) for each, block in enumerate(record.noise.blocks)]
    yield from _raw_blocks(blocks)
    references = figures.references_by_case(record.references)
    if len(record.references) != sum(map(len, references.values())):
        yield Finding("references", "one input twice", "each input once")
    for index, reference in enumerate(record.references):
        where = f"references[{index}]"
        if len(reference.classes) != reference.batch:
            yield Finding(f"{where}.classes", str(len(reference.classes)), f"{reference.batch}, one per image")
        yield from _kept(where, reference.images, reference.batch, reference.output.shape)
    seen: dict[tuple[str, str, int, str, str, int], int] = {}
    for index, row in enumerate(record.rows):
        name = (row.network, row.engine, row.batch, row.precision, row.device, row.threads)
        if name in seen:
            yield Finding(f"rows[{index}]", "a second row of the same name", f"rows[{seen[name]}] only")
        seen[name] = index
        yield from _raw_row(f"rows[{index}]", row, references.get((row.network, row.batch), {}))
    yield from _raw_energy(record, blocks)
    if record.partial != (record.partial_reason is not None):
        yield Finding("partial_reason", str(record.partial_reason), "a reason if and only if the Record is partial")


def _raw_blocks(blocks: list[tuple[str, Block]]) -> Iterator[Finding]:
    for where, block in blocks:
        if not block.durations_ns or min(block.durations_ns) <= 0:
            yield Finding(f"{where}.durations_ns", "none, or one not positive", "at least one, all positive")
        elif sum(block.durations_ns) * 1e-9 > block.elapsed_s * (1 + SAME_FIGURE) + 1e-6:
            yield Finding(f"{where}.elapsed_s", str(block.elapsed_s), f"{sum(block.durations_ns) * 1e-9} s of runs")
    ordered = sorted(blocks, key=lambda each: each[1].sequence)
    for (_, before), (where, block) in pairwise(ordered):
        if block.sequence == before.sequence:
            yield Finding(f"{where}.sequence", str(block.sequence), "a number of its own")
        elif block.start_s < before.start_s + before.elapsed_s - 1e-3:
            yield Finding(f"{where}.start_s", str(block.start_s), f"after {before.start_s + before.elapsed_s} s")


def _raw_row(where: str, row: Row, references: Mapping[int, Reference]) -> Iterator[Finding]:
    if row.status in ("ok", "invalid") and not row.blocks:
        yield Finding(f"{where}.status", row.status, "skipped, without a block")
    if (row.reason is None) != (row.status == "ok"):
        yield Finding(f"{where}.reason", str(row.reason), "a reason for every status but ok")
    if len({block.round for block in row.blocks}) != len(row.blocks):
        yield Finding(f"{where}.blocks", "two blocks of one round", "one block a round")
    runs = {block.sequence: len(block.durations_ns) for block in row.blocks}
    for index, sample in enumerate(row.samples):
        at = f"{where}.samples[{index}]"
        if sample.run < 0 or sample.run >= runs.get(sample.block, 0):
            yield Finding(f"{at}.run", f"run {sample.run} of block {sample.block}", "a timed run of this row")
        if sample.input not in references:
            yield Finding(f"{at}.input", str(sample.input), "an input with a reference")
        if not len(sample.relative_errors) == len(sample.classes) == row.batch:
            yield Finding(f"{at}.relative_errors", str(len(sample.relative_errors)), f"{row.batch}, one per image")
        shape = None if sample.output is None else sample.output.shape
        yield from _kept(at, sample.images, row.batch, shape)


def _raw_energy(record: Record, blocks: list[tuple[str, Block]]) -> Iterator[Finding]:
    """Yield contradictions among the readings of meters, and with the blocks that they belong to."""
    energy, rows = record.energy, {f"rows[{index}]": row for index, row in enumerate(record.rows)}
    if record.schema_version == 1 and energy is not None:
        yield Finding("schema_version", "1", "2, for a Record with energy")
    names = [facts.name for facts in energy.meters] if energy is not None else []
    for where, block in blocks:
        row = rows.get(where.partition(".")[0])
        if [reading.meter for reading in block.energy] != (names if row is None or row.engine != "null" else []):
            yield Finding(f"{where}.energy", str([reading.meter for reading in block.energy]), f"one each of {names}")
        for index, reading in enumerate(block.energy):
            at = f"{where}.energy[{index}]"
            yield from _raw_reading(at, reading)
            if reading.joules is None or energy is None:
                continue
            before_s, after_s = next((edges_s(facts) for facts in energy.meters if facts.name == reading.meter), (0, 0))
            start_s, end_s = block.start_s + before_s, block.start_s + block.elapsed_s - after_s
            if not math.isclose(reading.start_s, start_s, abs_tol=_EDGE_S):
                yield Finding(f"{at}.start_s", str(reading.start_s), f"{start_s}, inside the block")
            elif not math.isclose(reading.end_s, end_s, abs_tol=_EDGE_S):
                yield Finding(f"{at}.end_s", str(reading.end_s), f"{end_s}, inside the block")
    if energy is None:
        return
    if bool(energy.meters) != (energy.reason is None):
        yield Finding("energy.reason", str(energy.reason), "a reason if and only if there is no meter")
    for index, facts in enumerate(energy.meters):
        at = f"energy.meters[{index}]"
        if facts.name in names[:index] or set(facts.overlaps) & set(names):
            yield Finding(f"{at}.name", facts.name, "a meter that overlaps with none of the others")
        if facts.devices != devices_of(facts.scope):
            yield Finding(f"{at}.devices", str(facts.devices), f"{devices_of(facts.scope)} for {facts.scope}")
    for index, idle in enumerate(energy.idle):
        at = f"energy.idle[{index}]"
        if [reading.meter for reading in idle.readings] != names:
            yield Finding(f"{at}.readings", str([each.meter for each in idle.readings]), f"one each of {names}")
        for each, reading in enumerate(idle.readings):
            yield from _raw_reading(f"{at}.readings[{each}]", reading)
            if any(
                reading.start_s < block.start_s + block.elapsed_s and block.start_s < reading.end_s
                for _, block in blocks
            ):
                yield Finding(f"{at}.readings[{each}].start_s", str(reading.start_s), "a time without a block")


def _raw_reading(where: str, reading: Reading) -> Iterator[Finding]:
    if reading.end_s <= reading.start_s:
        yield Finding(f"{where}.end_s", str(reading.end_s), f"after {reading.start_s}")
    parts = (reading.joules, reading.half_width_j, reading.gain)
    if (reading.reason is None) != all(part is not None for part in parts) or (
        reading.reason is not None and any(part is not None for part in parts)
    ):
        yield Finding(f"{where}.joules", str(reading.joules), "joules and how sure they are, or a reason without")
    elif reading.joules is not None and not (
        reading.joules > 0 and min(reading.half_width_j or 0, reading.gain or 0) >= 0
    ):
        yield Finding(f"{where}.joules", str(reading.joules), "more than 0 J, with an error of 0 or more")


def _kept(where: str, images: tuple[int, ...], batch: int, shape: tuple[int, ...] | None) -> Iterator[Finding]:
    if len(set(images)) != len(images) or any(not 0 <= image < batch for image in images):
        yield Finding(f"{where}.images", str(images), f"different positions below {batch}")
    if (shape is None and images) or (shape is not None and (len(shape) != 2 or shape[0] != len(images))):
        yield Finding(f"{where}.output", f"shape {shape}", f"{len(images)} images")


def _outputs(record: Record) -> Iterator[Finding]:
    """Yield what the kept outputs contradict: errors, classes, and that the worst image is among them."""
    references = figures.references_by_case(record.references)
    whole: dict[tuple[str, int, int, int], np.ndarray] = {}
    for index, reference in enumerate(record.references):
        for place, output in _unpacked(f"references[{index}]", reference.images, unpack(reference.output)):
            whole[reference.network, reference.batch, reference.input, place] = output
            if int(output.argmax()) != reference.classes[place]:
                where = f"references[{index}].classes[{place}]"
                yield Finding(where, str(reference.classes[place]), str(int(output.argmax())))
    for index, row in enumerate(record.rows):
        if not references.get((row.network, row.batch)):
            continue
        for each, sample in enumerate(row.samples):
            yield from _of_sample(f"rows[{index}].samples[{each}]", row, sample, whole)
        if figures.is_judged(row) and row.engine != "null" and not _worst_is_kept(row):
            yield Finding(f"rows[{index}].samples", "without the worst image's output", "the worst image's output kept")


def _unpacked(where: str, images: tuple[int, ...], outputs: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    if not np.all(np.isfinite(outputs)):
        raise RecordError(f"{where}.output: expected finite numbers; take the Record from its source again")
    yield from zip(images, outputs, strict=True)


def _of_sample(
    where: str, row: Row, sample: Sample, whole: Mapping[tuple[str, int, int, int], np.ndarray]
) -> Iterator[Finding]:
    if sample.output is None:
        return
    for place, output in zip(sample.images, unpack(sample.output), strict=True):
        reference = whole.get((row.network, row.batch, sample.input, place))
        if reference is None:
            yield Finding(f"{where}.images", str(place), "an image whose reference is kept")
            continue
        printed, again = sample.relative_errors[place], None
        if output.shape == reference.shape:
            again = truth.relative_error(output, reference)
            chosen = int(np.nan_to_num(output, nan=0.0, posinf=0.0, neginf=0.0).argmax())
            if chosen != sample.classes[place]:
                yield Finding(f"{where}.classes[{place}]", str(sample.classes[place]), str(chosen))
        if not _same(printed, again, SAME_ERROR, SMALLEST_ERROR):
            yield Finding(f"{where}.relative_errors[{place}]", str(printed), str(again))


def _worst_is_kept(row: Row) -> bool:
    if not row.samples:
        return row.status == "invalid"
    every = [(_badness(error), place in sample.images)
             for sample in row.samples for place, error in enumerate(sample.relative_errors)]  # fmt: skip
    worst = max(badness for badness, _ in every)
    return worst == math.inf or any(kept for badness, kept in every if badness == worst)


def _badness(error: float | None) -> float:
    return math.inf if error is None else error


def _same(printed: float | None, again: float | None, relative: float, absolute: float = 0.0) -> bool:
    if printed is None or again is None:
        return printed is again
    return math.isclose(printed, again, rel_tol=relative, abs_tol=absolute)


def differences(where: str, printed: Any, again: Any) -> Iterator[Finding]:
    """Yield each leaf in which two dumps of a Record differ; the digest only when nothing else does."""
    if isinstance(printed, dict) and isinstance(again, dict):
        inner = [
            finding
            for name in printed
            if where or name != "digest"
            for finding in differences(f"{where}.{name}" if where else name, printed[name], again.get(name))
        ]
        yield from inner
        if not where and not inner and printed["digest"] != again["digest"]:
            yield Finding("digest", f"{printed['digest']} (something that no figure shows was edited)", again["digest"])
    elif isinstance(printed, list | tuple) and isinstance(again, list | tuple) and len(printed) == len(again):
        for index, (one, other) in enumerate(zip(printed, again, strict=True)):
            yield from differences(f"{where}[{index}]", one, other)
    elif isinstance(printed, float) and isinstance(again, float):
        if not _same(printed, again, SAME_FIGURE):
            yield Finding(where, repr(printed), repr(again))
    elif printed != again:
        yield Finding(where, repr(printed), repr(again))
