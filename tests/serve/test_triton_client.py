"""Conformance: NVIDIA's own clients, over REST and gRPC, against a served package and the network that does nothing."""

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from http_harness import LABELS, Bench, bench, expected, photo, tensors
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from perwatt.errors import Refused
from perwatt.package.preprocessing import preprocess
from perwatt.serve import grpc_server
from perwatt.serve.grpc_messages import classes
from perwatt.serve.limits import HttpLimits
from perwatt.serve.server import HttpServer, _listen, http_config

# Copied at each use: tritonclient writes its own headers into the dictionary it is given.
TOKEN = {"authorization": "Bearer a long secret"}


@dataclass
class Both:
    """One front behind both protocols; `kind` says which client asks."""

    made: Bench
    kind: Any
    client: Any
    loop: asyncio.AbstractEventLoop

    def tensor(self, images: np.ndarray) -> Any:
        found = self.kind.InferInput("pixels", list(images.shape), "FP32")
        found.set_data_from_numpy(images)
        return found

    def ask(self, inputs: Any, **more: Any) -> Any:
        return self.client.infer("sums", [inputs], headers=dict(TOKEN), **more)


@pytest.fixture(scope="module", params=["http", "grpc"])
def both(request: pytest.FixtureRequest) -> Iterator[Both]:
    made = bench(HttpLimits(body_bytes=1 << 20), token="a long secret")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    if request.param == "http":
        listener = _listen("127.0.0.1", 0)
        server = HttpServer(http_config(made.front))
        serving = asyncio.run_coroutine_threadsafe(server.serve([listener]), loop)
        client: Any = over_http.InferenceServerClient(f"127.0.0.1:{listener.getsockname()[1]}", concurrency=4)
        yield Both(made, over_http, client, loop)
        client.close()
        server.should_exit = True
        serving.result(30)
    else:
        rpc, port = run(grpc_server.start(made.front, "127.0.0.1", 0))
        client = over_grpc.InferenceServerClient(f"127.0.0.1:{port}")
        yield Both(made, over_grpc, client, loop)
        client.close()
        run(rpc.stop(0))
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def plain(message: Any) -> Any:
    """Return an answer's fields whether it is JSON or a protobuf message."""
    return message if isinstance(message, (dict, list)) else {
        field.name: value for field, value in message.ListFields()
    }  # fmt: skip


def test_health_and_facts(both: Both) -> None:
    assert both.client.is_server_live()
    assert both.client.is_server_ready()
    assert both.client.is_model_ready("sums", headers=dict(TOKEN))
    assert both.client.is_model_ready("sums", "1", headers=dict(TOKEN))
    server = plain(both.client.get_server_metadata(headers=dict(TOKEN)))
    assert server["name"] == "perwatt"
    assert "binary_tensor_data" in server["extensions"]
    facts = plain(both.client.get_model_metadata("sums", headers=dict(TOKEN)))
    assert facts["name"] == "sums"
    assert list(facts["versions"]) == ["1"]
    first = facts["inputs"][0] if both.kind is over_http else plain(facts["inputs"][0])
    assert (first["name"], first["datatype"], list(first["shape"])) == ("pixels", "FP32", [-1, 3, 6, 5])


@pytest.mark.parametrize("count", [1, 2, 7])
def test_tensors(both: Both, count: int) -> None:
    images = tensors(count)
    result = both.ask(both.tensor(images), request_id="some id")
    for name, values in zip(("sums", "first"), expected(images), strict=True):
        np.testing.assert_array_equal(result.as_numpy(name), values)
        assert result.as_numpy(name).dtype == np.float32
    answer = result.get_response()
    assert (answer["id"] if isinstance(answer, dict) else answer.id) == "some id"


def test_some_outputs_and_classes(both: Both) -> None:
    images = tensors(2)
    result = both.ask(both.tensor(images), outputs=[both.kind.InferRequestedOutput("first")])
    np.testing.assert_array_equal(result.as_numpy("first"), expected(images)[1])
    assert result.as_numpy("sums") is None
    result = both.ask(both.tensor(images), outputs=[both.kind.InferRequestedOutput("sums", class_count=3)])
    texts = [[text.decode().split(":") for text in row] for row in result.as_numpy("sums")]
    for row, values in zip(texts, expected(images)[0], strict=True):
        assert [int(index) for _, index, _ in row] == list(np.argsort(-values, kind="stable")[:3])
        assert [np.float32(value) for value, _, _ in row] == list(np.sort(values)[::-1][:3])
        assert [label for _, _, label in row] == [LABELS[int(index)] for _, index, _ in row]


def test_photographs_as_bytes(both: Both) -> None:
    photos = [photo(seed=seed) for seed in range(3)]
    found = both.kind.InferInput("pixels", [3], "BYTES")
    found.set_data_from_numpy(np.array(photos, dtype=object))
    from http_harness import HOW

    images = np.stack([preprocess(each, HOW) for each in photos])
    np.testing.assert_array_equal(both.ask(found).as_numpy("sums"), expected(images)[0])


def test_priority_and_timeout(both: Both) -> None:
    before = time.monotonic()
    both.ask(both.tensor(tensors()), priority=3, timeout=2_500_000)
    seen = both.made.service.seen[-1]
    assert seen["priority"] == 3
    assert before + 2.5 <= seen["deadline"] <= time.monotonic() + 2.5


@pytest.mark.parametrize("what", ["model", "version", "name", "shape", "datatype", "output", "token", "large"])
def test_refusals_arrive_as_the_client_s_own_exception(both: Both, what: str) -> None:
    images = tensors()
    tensor = both.tensor(images)
    asked: dict[str, Any] = {"model_name": "sums", "inputs": [tensor], "headers": dict(TOKEN)}
    if what == "model":
        asked["model_name"] = "other"
    elif what == "version":
        asked["model_version"] = "9"
    elif what == "name":
        asked["inputs"] = [both.kind.InferInput("other", list(images.shape), "FP32")]
        asked["inputs"][0].set_data_from_numpy(images)
    elif what == "shape":
        asked["inputs"] = [both.tensor(images.reshape(1, 3, 5, 6))]
    elif what == "datatype":
        asked["inputs"] = [both.kind.InferInput("pixels", list(images.shape), "FP64")]
        asked["inputs"][0].set_data_from_numpy(images.astype(np.float64))
    elif what == "output":
        asked["outputs"] = [both.kind.InferRequestedOutput("other")]
    elif what == "token":
        asked["headers"] = {"authorization": "Bearer wrong"}
    else:
        asked["inputs"] = [both.tensor(tensors(3000))]
    with pytest.raises(InferenceServerException) as refused:
        both.client.infer(**asked)
    codes = {"model": ("404", "NOT_FOUND"), "version": ("404", "NOT_FOUND"), "token": ("401", "UNAUTHENTICATED"),
             "large": ("413", "RESOURCE_EXHAUSTED")}.get(what, ("422", "INVALID_ARGUMENT"))  # fmt: skip
    assert any(code in str(refused.value.status()) for code in codes)
    assert refused.value.message()
    np.testing.assert_array_equal(both.ask(tensor).as_numpy("first"), expected(images)[1])  # the server goes on


def test_a_refusal_of_the_queue(both: Both) -> None:
    both.made.service.refusal = Refused("full", reason="queue_full", status=429, retry_after_s=2.0)
    try:
        with pytest.raises(InferenceServerException, match="full"):
            both.ask(both.tensor(tensors()))
    finally:
        both.made.service.refusal = None


def test_many_at_once(both: Both) -> None:
    images = [tensors(1, seed) for seed in range(20)]
    both.made.service.pause_s = 0.01
    if both.kind is over_http:
        waiting = [both.client.async_infer("sums", [both.tensor(each)], headers=dict(TOKEN)) for each in images]
        results = [each.get_result() for each in waiting]
    else:
        done: dict[int, Any] = {}
        ended = threading.Semaphore(0)

        def keep(number: int) -> Any:
            def called(result: Any, error: Any) -> None:
                done[number] = result if error is None else error
                ended.release()

            return called

        for number, each in enumerate(images):
            both.client.async_infer("sums", [both.tensor(each)], keep(number), headers=dict(TOKEN))
        assert all(ended.acquire(timeout=20) for _ in images)
        results = [done[number] for number in range(len(images))]
    both.made.service.pause_s = 0.0
    for each, result in zip(images, results, strict=True):
        np.testing.assert_array_equal(result.as_numpy("sums"), expected(each)[0])


def test_the_repository(both: Both) -> None:
    both.client.load_model("sums", headers=dict(TOKEN))
    facts = plain(both.client.get_model_metadata("sums", headers=dict(TOKEN)))
    assert list(facts["versions"]) == ["2"]
    both.client.load_model("spare", headers=dict(TOKEN))
    index = both.client.get_model_repository_index(headers=dict(TOKEN))
    rows = index if both.kind is over_http else [plain(row) for row in index.models]
    assert {row["name"]: row["state"] for row in rows} == {"sums": "READY", "spare": "READY"}
    both.client.unload_model("spare", headers=dict(TOKEN))
    assert not both.client.is_model_ready("sums", "7", headers=dict(TOKEN)) if both.kind is over_http else True
    with pytest.raises(InferenceServerException):
        both.client.load_model("sums", headers=dict(TOKEN), config='{"max_batch_size": 4}')
    with pytest.raises(InferenceServerException):
        both.client.load_model("spare", headers=dict(TOKEN))  # its file is gone


def test_grpc_deadlines_and_cancellation_reach_the_network(both: Both) -> None:
    if both.kind is not over_grpc:
        return  # REST has no deadline of its own; leaving is tested with sockets
    service = next(iter(both.made.front.repository)).service
    service.pause_s = 20.0
    try:
        before = time.monotonic()
        with pytest.raises(InferenceServerException) as late:
            both.ask(both.tensor(tensors()), client_timeout=0.3)
        assert "DEADLINE_EXCEEDED" in str(late.value.status())
        assert time.monotonic() - before < 10
        until = time.monotonic() + 10
        while service.running and time.monotonic() < until:
            time.sleep(0.01)
        assert service.running == 0
        assert service.cancelled == 1
        assert service.seen[-1]["deadline"] <= before + 0.35
    finally:
        service.pause_s = 0.0


def test_grpc_typed_contents_and_nonsense(both: Both) -> None:
    if both.kind is not over_grpc:
        return
    images = tensors(2)
    request = service_pb2.ModelInferRequest(model_name="sums")
    tensor = request.inputs.add(name="pixels", datatype="FP32", shape=images.shape)
    tensor.contents.fp32_contents.extend(images.ravel().tolist())
    stub = both.client._client_stub
    metadata = tuple(TOKEN.items())
    answer = stub.ModelInfer(request, metadata=metadata)
    assert answer.raw_output_contents[1] == expected(images)[1].tobytes()
    for change in (
        lambda each: each.inputs.add(name="pixels"),
        lambda each: each.raw_input_contents.extend([b"x", b"y"]),
        lambda each: setattr(each.inputs[0], "datatype", "FP16"),
        lambda each: setattr(each.inputs[0], "datatype", "INT8"),
        lambda each: each.inputs[0].contents.fp32_contents.pop(),
        lambda each: each.inputs[0].shape.append(0),
        lambda each: each.parameters["timeout"].CopyFrom(service_pb2.InferParameter(string_param="soon")),
        lambda each: each.parameters["sequence_id"].CopyFrom(service_pb2.InferParameter(int64_param=4)),
    ):
        broken = service_pb2.ModelInferRequest()
        broken.CopyFrom(request)
        change(broken)
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(broken, metadata=metadata)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_the_messages_described_here_are_those_of_the_protocol() -> None:
    """Field by field against the protocol compiler's output in tritonclient."""
    for name, ours in classes().items():
        theirs: Any = service_pb2.DESCRIPTOR.message_types_by_name[name.split(".")[0]]
        for inner in name.split(".")[1:]:
            theirs = theirs.nested_types_by_name[inner]
        for field in ours.DESCRIPTOR.fields:
            other = theirs.fields_by_number[field.number]
            assert (field.name, field.type, field.is_repeated) == (other.name, other.type, other.is_repeated), name
            assert (field.containing_oneof is None) == (other.containing_oneof is None)


def test_a_taken_port_is_said_in_one_line(tmp_path: Path) -> None:
    from perwatt.errors import InputError

    listener = _listen("127.0.0.1", 0)
    with pytest.raises(InputError, match="expected a free one"):
        _listen("127.0.0.1", listener.getsockname()[1])
    listener.close()
