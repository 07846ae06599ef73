"""Which answers agree: rounding may differ, another image's answer may not."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perwatt.lab.load.answers import Judge, agree, read
from perwatt.lab.load.generator import RIGHT, STRANGER, UNJUDGED, WRONG

HEAD = b"HTTP/1.1 200 OK\r\n"


def labels(*scores: tuple[str | None, int, float], **more: Any) -> bytes:
    rows = [{"label": label, "index": index, "score": score} for label, index, score in scores]
    return json.dumps({"model_name": "cat", "labels": rows, **more}).encode()


def tensor(values: np.ndarray, identifier: str = "1") -> tuple[bytes, bytes]:
    raw = values.astype("<f4").tobytes()
    output = {
        "name": "y",
        "datatype": "FP32",
        "shape": list(values.shape),
        "parameters": {"binary_data_size": len(raw)},
    }
    head = json.dumps({"id": identifier, "model_name": "cat", "outputs": [output]}).encode()
    return HEAD + b"Inference-Header-Content-Length: %d\r\n" % len(head), head + raw


def judge(*answers: tuple[bytes, bytes], tolerance: float = 1e-3) -> Judge:
    made = Judge(len(answers), tolerance)
    for number, (head, body) in enumerate(answers):
        assert made.learn(number, head, body) == RIGHT
    return made


def test_labels_agree_up_to_rounding_and_times() -> None:
    cat = (HEAD, labels(("cat", 1, 0.7), ("lynx", 2, 0.2), (None, 3, 0.1), time_ms=3.2, id="a"))
    dog = (HEAD, labels(("dog", 5, 0.9), ("wolf", 6, 0.05), (None, 7, 0.01)))
    judged = judge(cat, dog)
    assert judged.distinct() == judged.known() == 2
    near = labels(("cat", 1, 0.7003), ("lynx", 2, 0.2), (None, 3, 0.1), time_ms=9.9, id="b")
    assert judged(0, HEAD, near) == RIGHT
    assert judged(0, HEAD, labels(("cat", 1, 0.71), ("lynx", 2, 0.2), (None, 3, 0.1))) == WRONG
    assert judged(0, HEAD, labels(("cat", 1, 0.7), ("lynx", 2, 0.2), (None, 4, 0.05))) == WRONG
    assert judged(0, *dog) == STRANGER
    assert judged(1, *cat) == STRANGER
    assert judged(0, HEAD, b"not JSON") == WRONG
    assert judged(0, HEAD, b'{"labels": []}') == WRONG


def test_labels_that_rounding_swaps_at_the_end_of_the_list_agree() -> None:
    judged = judge((HEAD, labels(("cat", 1, 0.7), ("lynx", 2, 0.20001))))
    assert judged(0, HEAD, labels(("cat", 1, 0.7), ("puma", 3, 0.20002))) == RIGHT
    assert judged(0, HEAD, labels(("cat", 1, 0.7), ("puma", 3, 0.25))) == WRONG


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.9))
def test_tensors_agree_within_the_tolerance_and_not_beyond(seed: int, part: float) -> None:
    random = np.random.RandomState(seed)
    values, other = random.uniform(0.5, 1, (2, 10)), random.uniform(0.5, 1, (2, 10)) * -1
    judged = judge(tensor(values), tensor(other))
    moved = values.copy()
    moved[1, 3] += part * 1e-3 * np.max(values)
    assert judged(0, *tensor(moved, "another")) == RIGHT
    moved[1, 3] += 3e-3 * np.max(values)
    assert judged(0, *tensor(moved)) == WRONG
    assert judged(0, *tensor(other)) == STRANGER
    assert judged(0, *tensor(values[:1])) == WRONG
    assert judged(0, *tensor(np.where(values > 0.9, np.nan, values))) in (WRONG, RIGHT)
    assert judged(0, *tensor(np.full_like(values, np.nan))) == WRONG


def test_numbers_that_were_given_are_compared_with_json_and_binary_alike() -> None:
    values = np.asarray([[0.1, 0.7, 0.2]])
    judged = Judge(2)
    judged.give(0, [values])
    assert judged(0, *tensor(values)) == RIGHT
    body = json.dumps({"outputs": [{"name": "y", "shape": [1, 3], "datatype": "FP32", "data": [0.1, 0.7, 0.2]}]})
    assert judged(0, HEAD, body.encode()) == RIGHT
    assert judged(0, HEAD, body.replace("0.7", "0.6").encode()) == WRONG
    assert judged(1, *tensor(values)) == UNJUDGED  # nothing is known of this one


def test_classification_strings_are_scores() -> None:
    def said(*words: str) -> bytes:
        return json.dumps(
            {"outputs": [{"name": "y", "datatype": "BYTES", "shape": [len(words)], "data": words}]}
        ).encode()

    judged = judge((HEAD, said("0.7:1:cat", "0.2:2:lynx")))
    assert judged(0, HEAD, said("0.70001:1:cat", "0.2:2:lynx")) == RIGHT
    assert judged(0, HEAD, said("0.7:3:dog", "0.2:2:lynx")) == WRONG


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[[[", b'{"outputs": [{"parameters": {"binary_data_size": 7}, "datatype": "FP32"}]}']
)
def test_what_cannot_be_read_is_no_answer(body: bytes) -> None:
    assert read(HEAD, body) is None or not body


@given(st.binary(max_size=80))
def test_any_body_can_be_read_or_not(body: bytes) -> None:
    first = read(HEAD, body)
    assert first is None or agree(first, first, 1e-3) or not np.all(np.isfinite(first.numbers))
