"""Whatever is sent: an answer that fits the protocol, never a 500, never a hang, and nothing held afterwards."""

import asyncio
import json
from typing import Any

import pytest
from http_harness import Bench, bench, binary_body, json_body, photo, tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perwatt.serve.limits import HttpLimits

INFER, CLASSIFY = "/v2/models/sums/infer", "/v2/models/sums/classify"
ALLOWED = {200, 400, 401, 403, 404, 405, 413, 415, 422, 429}
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
KEYS = st.sampled_from(
    ["inputs", "outputs", "parameters", "id", "name", "shape", "datatype", "data", "binary_data_size", "pixels", "sums",
     "timeout", "priority", "classification", "binary_data", "binary_data_output"]
)  # fmt: skip
VALUES = st.recursive(
    SCALARS | st.sampled_from(["pixels", "sums", "FP32", "BYTES", "INT64"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)
FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def made() -> Bench:
    return bench(HttpLimits(body_bytes=1 << 20, json_bytes=1 << 19, pixels=10_000))


def check(made: Bench, path: str, body: bytes | list[bytes], **headers: str) -> None:
    reply = asyncio.run(made.acall("POST", path, body, **headers))
    assert reply.status in ALLOWED, (reply.status, reply.body)
    if reply.status != 200:
        assert isinstance(reply.json["error"], str)
    assert made.front.requests == made.front.held_bytes == made.front.decoder.waiting == 0


@given(body=st.binary(max_size=600), length=st.none() | st.integers(0, 700))
@FUZZ
def test_any_bytes(made: Bench, body: bytes, length: int | None) -> None:
    headers = {} if length is None else {"inference_header_content_length": str(length)}
    check(made, INFER, body, **headers)
    check(made, CLASSIFY, body)


@given(message=VALUES)
@FUZZ
def test_any_json(made: Bench, message: Any) -> None:
    text = json.dumps(message, allow_nan=True)
    check(made, INFER, text.encode())


@given(field=KEYS, value=VALUES, where=st.sampled_from(["top", "input", "output", "parameters"]))
@FUZZ
def test_a_sound_message_with_one_field_replaced(made: Bench, field: str, value: Any, where: str) -> None:
    message = json.loads(json_body(tensors(), outputs=[{"name": "sums", "parameters": {}}], parameters={}))
    holder = {
        "top": message,
        "input": message["inputs"][0],
        "output": message["outputs"][0],
        "parameters": message["inputs"][0].setdefault("parameters", {}),
    }[where]
    holder[field] = value
    check(made, INFER, json.dumps(message).encode())


@given(
    position=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.integers(0, 10**6),
    kind=st.sampled_from(["binary", "PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"]),
)  # fmt: skip
@FUZZ
def test_sound_bodies_with_a_byte_changed_or_cut(made: Bench, position: int, byte: int, cut: int, kind: str) -> None:
    body, headers = binary_body(tensors(2)) if kind == "binary" else (photo(20, 20, kind), {})
    changed = bytearray(body)
    changed[position % len(body)] = byte
    path = INFER if kind == "binary" else CLASSIFY
    check(made, path, bytes(changed), **headers)
    check(made, path, body[: cut % len(body)], **headers)
    check(made, path, [bytes(changed[:7]), bytes(changed[7:])], **headers)


@given(
    headers=st.dictionaries(
        st.sampled_from(
            ["content_type", "content_length", "content_encoding", "inference_header_content_length", "traceparent",
             "authorization", "origin", "x_request_timeout_ms", "x_request_priority", "expect"]
        ),
        st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40) | st.integers(-5, 10**20).map(str),
        max_size=4,
    ),
    query=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30),
)  # fmt: skip
@FUZZ
def test_any_headers_and_queries(made: Bench, headers: dict[str, str], query: str) -> None:
    check(made, f"{INFER}?{query}", json_body(tensors()), **headers)
    check(made, f"{CLASSIFY}?top={query}", photo(20, 20), **headers)


@given(path=st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), max_size=60))
@FUZZ
def test_any_path(made: Bench, path: str) -> None:
    for method in ("GET", "POST"):
        for begin in ("/", "/v2/models/", "/v2/models/sums/", "/v2/repository/models/", "/status/"):
            if "events" in path:
                continue
            reply = asyncio.run(made.acall(method, begin + path, b"{}"))
            assert reply.status in ALLOWED | {307}
