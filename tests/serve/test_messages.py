"""Messages of the protocol: what NVIDIA's client writes is read as meant, what breaks a rule is refused by it."""

import base64
import json
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from http_harness import LABELS, SIZE, Sums, binary_body, deployed, expected, json_body, photo, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.utils import serialize_byte_tensor

from perwatt.errors import Refused
from perwatt.serve.datatypes import DATATYPES, elements, from_json, joined
from perwatt.serve.limits import HttpLimits
from perwatt.serve.messages import Question, best, question, response

SUBJECT = deployed(Sums()).subject
LIMITS = HttpLimits()


def read(body: bytes, length: int | None = None, is_image: bool = False) -> Question:
    return question(body, length, SUBJECT, LIMITS, is_image)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_what_tritonclient_writes_is_read_as_meant(binary: bool, count: int) -> None:
    images = tensors(count)
    tensor = triton.InferInput("pixels", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images, binary_data=binary)
    wanted = [
        triton.InferRequestedOutput("sums", binary_data=binary, class_count=2),
        triton.InferRequestedOutput("first", binary_data=not binary),
    ]
    body, length = triton.InferenceServerClient.generate_request_body(
        [tensor], outputs=wanted, request_id="42", priority=3, timeout=1500
    )
    asked = read(body, length)
    np.testing.assert_array_equal(asked.tensor, images)
    assert (asked.id, asked.priority, asked.timeout_s) == ("42", 3, 0.0015)
    assert [(each.index, each.binary, each.classes) for each in asked.wanted] == [(0, binary, 2), (1, not binary, None)]


@pytest.mark.parametrize("binary", [True, False])
def test_what_is_answered_tritonclient_reads(binary: bool) -> None:
    images = tensors(2)
    body, headers = binary_body(images, outputs=[{"name": "sums", "parameters": {"binary_data": binary}}], id="7")
    asked = read(body, int(headers["inference_header_content_length"]))
    answered, length = response(("sums", "1"), asked, SUBJECT, expected(images), LABELS)
    result = triton.InferenceServerClient.parse_response_body(answered, header_length=length)
    np.testing.assert_array_equal(result.as_numpy("sums"), expected(images)[0])
    assert result.get_response()["id"] == "7"
    assert result.as_numpy("first") is None


def test_nothing_asked_for_means_every_output_in_json() -> None:
    images = tensors(2)
    asked = read(json_body(images))
    answered, length = response(("sums", "1"), asked, SUBJECT, expected(images), LABELS)
    assert length is None
    found = {each["name"]: each for each in json.loads(answered)["outputs"]}
    assert set(found) == {"sums", "first"}
    np.testing.assert_array_equal(np.array(found["sums"]["data"], np.float32).reshape(2, 5), expected(images)[0])


def test_classes_are_named_best_first_and_equal_ones_in_order() -> None:
    values = np.array([[0.25, 2.5, 2.5, np.nan, -1.0]], np.float32)
    asked = read(json_body(tensors(), outputs=[{"name": "sums", "parameters": {"classification": 4}}]))
    answered, _ = response(("sums", "1"), asked, SUBJECT, (values, values[:, 0]), LABELS)
    output = json.loads(answered)["outputs"][0]
    assert output["datatype"] == "BYTES"
    assert output["shape"] == [1, 4]
    assert output["data"] == ["2.5:1:class 1", "2.5:2:class 2", "0.25:0:class 0", "-1.0:4:naïve café"]
    assert best(values[0], 5)[-1] == 3


def test_infinite_and_undefined_values_leave_valid_json() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 0.1, 1e-42]], np.float32)
    asked = read(json_body(tensors(), outputs=[{"name": "sums"}]))
    answered, _ = response(("sums", "1"), asked, SUBJECT, (values, values[:, 0]), LABELS)
    data = json.loads(answered, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))["outputs"][0]["data"]
    assert data[:3] == [None, None, None]
    np.testing.assert_array_equal(np.array(data[3:], np.float32), values[0, 3:])


def test_photographs_come_as_bytes_with_their_lengths_or_as_base64() -> None:
    photos = [photo(seed=1), photo(seed=2)]
    raw = serialize_byte_tensor(np.array(photos, dtype=object)).item()
    head = {
        "inputs": [{"name": "pixels", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}]
    }
    text = json.dumps(head).encode()
    assert [bytes(each) for each in read(text + raw, len(text)).photos] == photos
    coded = [base64.b64encode(each).decode() for each in photos]
    named = {"name": "pixels", "shape": [2], "datatype": "BYTES", "data": coded}
    assert list(read(json.dumps({"inputs": [named]}).encode()).photos) == photos


def test_a_body_that_is_only_the_input_is_a_tensor_or_by_its_type_a_photograph() -> None:
    images = tensors(2)
    np.testing.assert_array_equal(read(images.tobytes(), 0).tensor, images)
    assert read(photo(), 0, is_image=True).photos == (photo(),)
    with pytest.raises(Refused, match="multiple of 360 bytes"):
        read(images.tobytes()[:-1], 0)
    with pytest.raises(Refused, match="multiple"):
        read(b"", 0)


def changed(**changes: Any) -> bytes:
    """Return a sound request with some of its one input's fields changed; None takes a field away."""
    named = {"name": "pixels", "shape": [1, 3, *SIZE], "datatype": "FP32", "data": [0.5] * 90, **changes}
    return json.dumps({"inputs": [{key: value for key, value in named.items() if value is not None}]}).encode()


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "JSON"),
        (b"[]", 400, "JSON object"),
        (b'{"inputs": NaN}', 400, "JSON"),
        (b'{"inputs": "\xff"}', 400, "JSON"),
        (b"[" * 100_000, 400, "JSON"),
        (b"{}", 422, "one tensor named 'pixels'"),
        (b'{"inputs": [{}, {}]}', 422, "one tensor"),
        (b'{"inputs": [3]}', 422, "one tensor"),
        (changed(name="other"), 422, "expected the input 'pixels', got 'other'"),
        (changed(shape=[1, 3, 5, 6]), 422, r"expected shape \[-1, 3, 6, 5\]"),
        (changed(shape=[0, 3, *SIZE], data=[]), 422, "expected shape"),
        (changed(shape=[129, 3, *SIZE]), 413, "at most 128 images"),
        (changed(shape=[-1, 3, *SIZE]), 400, "sizes"),
        (changed(shape=[1.0, 3, *SIZE]), 400, "sizes"),
        (changed(shape=[True, 3, *SIZE]), 400, "sizes"),
        (changed(shape=[1] * 70), 400, "sizes"),
        (changed(shape=None), 400, "sizes"),
        (changed(datatype="FP64"), 422, "expected datatype FP32"),
        (changed(datatype=["FP32"]), 422, "expected datatype FP32"),
        (changed(data=None), 400, "either data or binary_data_size"),
        (changed(data=[0.5] * 89), 400, "expected 90 numbers"),
        (changed(data=[[0.5] * 45] * 2), 400, "flat or"),
        (changed(data=[0.5] * 89 + ["x"]), 400, "numbers"),
        (changed(data=["0.5"] * 90), 400, "numbers"),
        (changed(data=[None] * 90), 400, "numbers"),
        (changed(data=[[0.5], 0.5]), 400, "uneven"),
        (changed(data="text"), 400, "list"),
        (changed(data=[10**400] * 90), 400, "JSON|numbers"),
        (changed(parameters={"binary_data_size": 4}), 400, "binary_data_size 0"),
        (changed(parameters={"shared_memory_region": "x"}), 422, "keeps nothing"),
        (changed(parameters=[1]), 400, "parameters"),
        (changed(datatype="BYTES", shape=[1], data=["no base64!"]), 400, "base64"),
        (changed(datatype="BYTES", shape=[2], data=["YQ=="]), 400, "2 photographs"),
        (changed(datatype="BYTES", shape=[0], data=[]), 422, "at least one"),
        (changed(datatype="BYTES", shape=[1 << 30], data=[]), 413, "at most 128"),
    ],
)
def test_what_breaks_a_rule_is_refused_by_that_rule(body: bytes, status: int, words: str) -> None:
    with pytest.raises(Refused, match=words) as refused:
        read(body)
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"outputs": [{"name": "nothing"}]}, "among sums, first"),
        ({"outputs": {"name": "sums"}}, "list of objects"),
        ({"outputs": [{"name": "sums"}, {"name": "sums"}]}, "twice"),
        ({"outputs": [{"name": "sums", "parameters": {"classification": 0}}]}, "classification"),
        ({"outputs": [{"name": "sums", "parameters": {"classification": True}}]}, "classification"),
        ({"outputs": [{"name": "sums", "parameters": {"binary_data": 1}}]}, "binary_data"),
        ({"parameters": {"timeout": -1}}, "timeout"),
        ({"parameters": {"timeout": 1.5}}, "timeout"),
        ({"parameters": {"timeout": 10**12}}, "timeout"),
        ({"parameters": {"priority": "high"}}, "priority"),
        ({"parameters": {"sequence_id": 5}}, "keeps nothing"),
        ({"id": 7}, "id as a string"),
    ],
)
def test_what_is_asked_around_the_tensor_is_checked_too(more: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        read(json_body(tensors(), **more))


def test_the_binary_form_counts_its_bytes() -> None:
    body, headers = binary_body(tensors())
    length = int(headers["inference_header_content_length"])
    for broken, size in ((body[:-1], length), (body + b"x", length), (body, length + 1), (body, len(body) + 1)):
        with pytest.raises(Refused) as refused:
            read(broken, size)
        assert refused.value.status == 400
    with pytest.raises(Refused, match="name them with binary_data_size"):
        read(json_body(tensors()) + b"more", len(json_body(tensors())))


@given(st.lists(st.binary(max_size=40), max_size=6))
@settings(max_examples=60, deadline=None)
def test_elements_and_their_lengths_survive_the_way(texts: list[bytes]) -> None:
    ours = joined(texts)
    if texts:  # tritonclient's own writer is the judge
        assert ours == serialize_byte_tensor(np.array(texts, dtype=object)).item()
    assert [bytes(each) for each in elements("t", memoryview(ours), len(texts))] == texts
    for cut in range(len(ours)):
        with pytest.raises(Refused):
            elements("t", memoryview(ours)[:cut], len(texts))


@given(st.sampled_from(sorted(DATATYPES)), st.data())
@settings(max_examples=80, deadline=None)
def test_numbers_in_json_arrive_as_they_were_whatever_their_type(name: str, data: st.DataObject) -> None:
    dtype = DATATYPES[name]
    if dtype.kind == "f":
        element: st.SearchStrategy[Any] = st.floats(width=8 * dtype.itemsize, allow_nan=False, allow_infinity=False)
    elif dtype.kind == "b":
        element = st.booleans()
    else:
        limits = np.iinfo(dtype)
        element = st.integers(int(limits.min), int(limits.max))
    values = data.draw(st.lists(element, min_size=6, max_size=6))
    array = np.array(values, dtype)
    for shaped in (array.ravel().tolist(), array.reshape(2, 3).tolist()):
        found = from_json("t", json.loads(json.dumps(shaped)), (2, 3), dtype)
        np.testing.assert_array_equal(found, array.reshape(2, 3))
        assert found.dtype == dtype


def test_whole_numbers_on_both_sides_of_the_signed_range_arrive_to_the_bit() -> None:
    for values in ([0, 2**63], [2**64 - 1, 1], [2**63 - 1, 2**63 + 1]):
        for data in (values, [[each] for each in values]):
            found = from_json("t", data, (2, 1), DATATYPES["UINT64"])
            assert found.ravel().tolist() == values
    for bad in ([0, 2**64], [-1, 2**63], [0.5, 2**63], [2.0**63, 0]):
        with pytest.raises(Refused):
            from_json("t", bad, (2,), DATATYPES["UINT64"])


@pytest.mark.parametrize(("name", "values"), [("UINT8", [256]), ("INT8", [-129]), ("UINT64", [-1]), ("INT32", [1.5])])
def test_numbers_beyond_their_type_are_refused(name: str, values: list[Any]) -> None:
    with pytest.raises(Refused):
        from_json("t", values, (1,), DATATYPES[name])
