"""Is an answer the one that belongs to its own request? Compared with the answer to the same request, asked alone.

A batch may be computed by another algorithm than a single image, so numbers may differ by rounding; labels whose scores
differ by no more than that may change places.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from perwatt.lab.load.generator import RIGHT, STRANGER, UNJUDGED, WRONG

TOLERANCE = 1e-3
# What may differ between two answers to one request: names of the request, and times.
_VOLATILE = re.compile(r"^(id|parameters|request_id|time|timing|timings|.*_(ms|us|ns|s)|batch_size)$")
_HEADER_LENGTH = re.compile(rb"\r\ninference-header-content-length:[ \t]*(\d{1,12})", re.IGNORECASE)
_OCTETS = re.compile(rb"\r\ncontent-type:[ \t]*application/octet-stream", re.IGNORECASE)
_SCORES = ("score", "probability", "confidence", "value")
_DTYPES = {
    "FP32": "<f4", "FP64": "<f8", "FP16": "<f2", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "BOOL": "<u1",
}  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """What an answer says, without what may differ: words in order, numbers in order, and scores by label."""

    words: tuple[str, ...]
    numbers: np.ndarray
    scores: dict[str, float]


def read(head: bytes, body: bytes) -> Reading | None:
    """Return what an answer says: JSON, JSON with binary tensors behind it, or bare float32; None for all else."""
    found = _HEADER_LENGTH.search(head)
    if found is None and _OCTETS.search(head):
        return Reading((), np.frombuffer(body, "<f4").astype(np.float64), {}) if len(body) % 4 == 0 and body else None
    length = int(found[1]) if found else len(body)
    try:
        content: Any = json.loads(body[:length])
    except (ValueError, RecursionError):
        return None
    words: list[str] = []
    numbers: list[np.ndarray] = []
    scores: dict[str, float] = {}
    at = length
    outputs = content.get("outputs") if isinstance(content, dict) else None
    for output in outputs if isinstance(outputs, list) else ():
        size = _binary_size(output)
        if size is None:
            continue
        raw, at = body[at : at + size], at + size
        if len(raw) != size:
            return None
        if output.get("datatype") in _DTYPES:
            try:
                numbers.append(np.frombuffer(raw, _DTYPES[output["datatype"]]).astype(np.float64))
            except ValueError:  # no whole number of elements
                return None
        else:
            words.append(raw.hex())
    _walk(content, words, numbers, scores)
    return Reading(tuple(words), np.concatenate(numbers) if numbers else np.zeros(0), scores)


def _binary_size(output: Any) -> int | None:
    parameters = output.get("parameters") if isinstance(output, dict) else None
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    return size if isinstance(size, int) and size >= 0 else None


def _walk(part: Any, words: list[str], numbers: list[np.ndarray], scores: dict[str, float]) -> None:
    if isinstance(part, dict):
        score = next((part[name] for name in _SCORES if isinstance(part.get(name), int | float)), None)
        if "label" in part and score is not None:
            scores[f"{part.get('index', '')}:{part['label']}"] = float(score)
            return
        for name, inner in part.items():
            if name == "shape":
                words.append(str(inner))
            elif not _VOLATILE.match(name):
                _walk(inner, words, numbers, scores)
    elif isinstance(part, list):
        for inner in part:
            _walk(inner, words, numbers, scores)
    elif isinstance(part, bool) or part is None:
        words.append(str(part))
    elif isinstance(part, int | float):
        numbers.append(np.asarray([part], dtype=np.float64))
    else:
        _word(str(part), words, scores)


def _word(text: str, words: list[str], scores: dict[str, float]) -> None:
    """Take a string: `value:index:label`, as the classification extension writes a score, or any other."""
    value, _, label = text.partition(":")
    try:
        score = float(value)
    except ValueError:
        label = ""
    if label:
        scores[label] = score
    else:
        words.append(text)


def agree(one: Reading, other: Reading, tolerance: float) -> bool:
    """Return whether two answers say the same: words alike, numbers and scores within `tolerance` of the largest."""
    if one.words != other.words or one.numbers.shape != other.numbers.shape:
        return False
    if one.numbers.size and not _near(one.numbers, other.numbers, tolerance):
        return False
    if len(one.scores) != len(other.scores):
        return False
    if not one.scores:
        return True
    largest = max(map(abs, (*one.scores.values(), *other.scores.values())))
    for mine, theirs in ((one.scores, other.scores), (other.scores, one.scores)):
        least = min(theirs.values())
        for label, score in mine.items():
            # A label that is not in the other list must have fallen off its end by rounding.
            if not abs(score - theirs.get(label, least)) <= tolerance * largest:
                return False
    return True


def _near(one: np.ndarray, other: np.ndarray, tolerance: float) -> bool:
    return bool(np.max(np.abs(one - other)) <= tolerance * max(np.max(np.abs(one)), np.max(np.abs(other))))


class Judge:
    """Says of each answer whether it is right; learns the expected ones first, or is given them.

    Call `learn` with answers to requests asked alone, then use the judge as the generator's.
    """

    def __init__(self, shots: int, tolerance: float = TOLERANCE) -> None:
        self.tolerance = tolerance
        self.expected: list[Reading | None] = [None] * shots
        self.bodies: list[bytes] = [b""] * shots

    def learn(self, shot: int, head: bytes, body: bytes) -> int:
        """Keep an answer as the expected one of its shot. A second answer must agree with the first."""
        known = self.expected[shot]
        reading = read(head, body)
        if known is not None:
            return RIGHT if reading is not None and agree(known, reading, self.tolerance) else WRONG
        self.expected[shot], self.bodies[shot] = reading, body
        return UNJUDGED if reading is None else RIGHT

    def give(self, shot: int, outputs: Sequence[np.ndarray]) -> None:
        """Set the numbers that the answer to a shot must have, all outputs one behind the other."""
        numbers = np.concatenate([np.asarray(output, dtype=np.float64).ravel() for output in outputs])
        self.expected[shot] = Reading((), numbers, {})

    def __call__(self, shot: int, head: bytes, body: bytes) -> int:
        """Return RIGHT, WRONG, STRANGER (it is the answer to another request), or UNJUDGED without an expected one."""
        expected = self.expected[shot]
        if expected is None:
            return UNJUDGED
        if body == self.bodies[shot]:
            return RIGHT
        reading = read(head, body)
        if reading is not None and self._same(expected, reading):
            self.bodies[shot] = body  # the next one is often the same, byte for byte
            return RIGHT
        if reading is None:
            return WRONG
        others = (each for number, each in enumerate(self.expected) if number != shot and each is not None)
        return STRANGER if any(self._same(each, reading) for each in others) else WRONG

    def _same(self, expected: Reading, reading: Reading) -> bool:
        if not expected.words and not expected.scores:  # given as numbers alone; names and shapes are not judged
            size = expected.numbers.size
            got = reading.numbers[:size] if reading.numbers.size >= size else reading.numbers
            return got.size == size > 0 and _near(expected.numbers, got, self.tolerance)
        return agree(expected, reading, self.tolerance)

    def extended(self, like: Sequence[int | None]) -> "Judge":
        """Return a judge of more shots behind these: each has the expected answer of the one it is like, or none."""
        made = Judge(0, self.tolerance)
        made.expected = [*self.expected, *(None if number is None else self.expected[number] for number in like)]
        made.bodies = [*self.bodies, *(b"" for _ in like)]
        return made

    def known(self) -> int:
        """Return how many shots have an expected answer."""
        return sum(each is not None for each in self.expected)

    def distinct(self) -> int:
        """Return how many of them agree with no other's: only of these would a swapped answer be seen."""
        known = [each for each in self.expected if each is not None]
        return sum(
            not any(agree(one, other, self.tolerance) for second, other in enumerate(known) if second != first)
            for first, one in enumerate(known)
        )
