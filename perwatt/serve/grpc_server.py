"""The Open Inference Protocol over gRPC, on a port of its own; admission, decoding and counting are the front's."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

import grpc
import numpy as np

from perwatt import __version__
from perwatt.errors import InputError, PerwattError, Refused
from perwatt.serve.app import DRAIN_S, EXTENSIONS, managed, model_facts
from perwatt.serve.connection import Client
from perwatt.serve.datatypes import BYTES, DATATYPES, datatype, joined
from perwatt.serve.front import GONE, Front, answer, answered, count_refusal, enter, leave, permit, retry_after_s
from perwatt.serve.grpc_messages import SERVICE, classes
from perwatt.serve.messages import Question, asked_in, classified
from perwatt.serve.repository import Deployed

ROUTE = "grpc"
PROBES = ("ServerLive", "ServerReady")
# The field of typed contents that holds each datatype; FP16 has none and travels raw.
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    GONE: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
Call = Callable[[Any, Any], Awaitable[Any]]


async def start(front: Front, host: str, port: int) -> tuple[Any, int]:
    """Return the running gRPC server and its port. Raises InputError when the port is taken."""
    limits = front.limits
    server = grpc.aio.server(
        maximum_concurrent_rpcs=limits.requests,
        options=[
            ("grpc.max_receive_message_length", limits.body_bytes),
            ("grpc.max_send_message_length", limits.body_bytes),
            ("grpc.max_metadata_size", limits.header_bytes),
            ("grpc.so_reuseport", 0),
            ("grpc.keepalive_permit_without_calls", 1),
        ],
    )
    made = classes()
    calls = _calls(front, made)
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                SERVICE,
                {
                    name: grpc.unary_unary_rpc_method_handler(
                        _guarded(front, name, call),
                        request_deserializer=made[f"{name}Request"].FromString,
                        response_serializer=made[f"{name}Response"].SerializeToString,
                    )
                    for name, call in calls.items()
                },
            ),
        )
    )
    try:
        bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError as error:
        raise InputError(f"grpc-port: expected a free one at {host}, got {port}; take another") from error
    await server.start()
    return server, bound


def question_of(request: Any, deployed: Deployed, front: Front) -> Question:
    """Return what a ModelInfer request asks. Raises Refused (400, 413, 422)."""
    if len(request.inputs) != 1 or len(request.raw_input_contents) > 1:
        raise Refused(
            f"expected one input named {deployed.subject.input.name!r}, got {len(request.inputs)}",
            reason="unfitting",
            status=422,
        )
    tensor = request.inputs[0]
    if request.raw_input_contents:
        raw = request.raw_input_contents[0]
    elif tensor.datatype == BYTES:
        raw = joined(list(tensor.contents.bytes_contents))
    else:
        raw = _typed(tensor)
    message = {
        "id": request.id or None,
        "parameters": _plain(request.parameters),
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": {**_plain(tensor.parameters), "binary_data_size": len(raw)},
            }
        ],
        "outputs": [
            {"name": output.name, "parameters": {**_plain(output.parameters), "binary_data": True}}
            for output in request.outputs
        ],
    }
    return asked_in(message, memoryview(raw), deployed.subject, front.limits)


def _typed(tensor: Any) -> bytes:
    field = CONTENTS.get(tensor.datatype)
    if field is None:
        raise Refused(
            f"input {tensor.name[:80]!r}: expected raw contents for datatype {tensor.datatype[:40]!r}",
            reason="malformed",
            status=400,
        )
    try:
        return np.array(getattr(tensor.contents, field), DATATYPES[tensor.datatype]).tobytes()
    except OverflowError as error:
        raise Refused(
            f"input {tensor.name[:80]!r}: expected numbers that fit {tensor.datatype}", reason="malformed", status=400
        ) from error


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return protobuf's parameters as plain values."""
    plain = {}
    for name, value in parameters.items():
        kind = value.WhichOneof("parameter_choice")
        if kind is not None:
            plain[name] = getattr(value, kind)
    return plain


def _calls(front: Front, made: Mapping[str, Any]) -> dict[str, Call]:
    """Return the procedures by name."""

    async def live(_: Any, __: Any) -> Any:
        return made["ServerLiveResponse"](live=True)

    async def ready(_: Any, __: Any) -> Any:
        return made["ServerReadyResponse"](ready=front.repository.ready and not front.draining)

    async def model_ready(request: Any, _: Any) -> Any:
        yes = front.repository.model_ready(request.name, request.version or None) and not front.draining
        return made["ModelReadyResponse"](ready=yes)

    async def server(_: Any, __: Any) -> Any:
        return made["ServerMetadataResponse"](name="perwatt", version=__version__, extensions=EXTENSIONS)

    async def model(request: Any, _: Any) -> Any:
        found = front.repository.lease(request.name, request.version or None)
        return made["ModelMetadataResponse"](**model_facts(found.loaded))

    async def index(request: Any, _: Any) -> Any:
        rows = [row for row in front.repository.index() if row["state"] == "READY" or not request.ready]
        return made["RepositoryIndexResponse"](models=rows)

    async def load(request: Any, _: Any) -> Any:
        managed(front)
        if request.parameters:
            raise Refused("expected no parameters: a package is loaded as its file is", reason="unfitting", status=422)
        await front.repository.load(request.model_name, DRAIN_S)
        return made["RepositoryModelLoadResponse"]()

    async def unload(request: Any, _: Any) -> Any:
        managed(front)
        await front.repository.unload(request.model_name, DRAIN_S)
        return made["RepositoryModelUnloadResponse"]()

    async def infer(request: Any, context: Any) -> Any:
        return await _infer(front, made, request, context)

    return {
        "ServerLive": live,
        "ServerReady": ready,
        "ModelReady": model_ready,
        "ServerMetadata": server,
        "ModelMetadata": model,
        "ModelInfer": infer,
        "RepositoryIndex": index,
        "RepositoryModelLoad": load,
        "RepositoryModelUnload": unload,
    }


def _guarded(front: Front, name: str, call: Call) -> Call:
    """Return a procedure that lets only permitted clients in and turns refusals into gRPC's."""

    async def guarded(request: Any, context: Any) -> Any:
        model = getattr(request, "model_name", "")
        status = 200
        try:
            if name not in PROBES:
                sent = {key: value for key, value in context.invocation_metadata() or () if key == "authorization"}
                text = sent.get("authorization")
                permit(front, text.encode() if isinstance(text, str) else text, None, None)
            return await call(request, context)
        except Refused as refused:
            status = refused.status
            count_refusal(front, model, refused)
            await _abort(context, refused)
        except PerwattError as error:
            status = 422
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except asyncio.CancelledError:
            status = GONE
            count_refusal(front, model, Refused("the client has gone", reason="cancelled", status=GONE))
            raise
        finally:
            if name == "ModelInfer":
                front.of(model if model in front.repository.held else "").answered(ROUTE, status)

    return guarded


async def _abort(context: Any, refused: Refused) -> NoReturn:
    wait_s = retry_after_s(refused)
    metadata = () if wait_s is None else (("retry-after-ms", str(round(1e3 * wait_s))),)
    await context.abort(CODES.get(refused.status, grpc.StatusCode.INTERNAL), str(refused), metadata)
    raise AssertionError("abort raises")


async def _infer(front: Front, made: Mapping[str, Any], request: Any, context: Any) -> Any:
    visit = enter(front, ROUTE, request.model_name)
    try:
        with front.repository.lease(request.model_name, request.model_version or None) as deployed:
            visit.hold(request.ByteSize())
            asked = question_of(request, deployed, front)
            remaining_s = context.time_remaining()
            if remaining_s is not None and asked.timeout_s is None:
                # gRPC's deadline is the client's patience, not a wish to wait longer than the server's own limit.
                limit_s = remaining_s if front.deadline_s is None else min(remaining_s, front.deadline_s)
                asked = Question(asked.tensor, asked.photos, asked.wanted, asked.id, max(limit_s, 1e-6), asked.priority)
            client = Client()
            client.task = asyncio.current_task()
            found = await answer(visit, deployed, asked, client)
            written = _response(made, deployed, asked, found.outputs)
            answered(visit)
            return written
    finally:
        leave(visit)


def _response(made: Mapping[str, Any], deployed: Deployed, asked: Question, outputs: tuple[np.ndarray, ...]) -> Any:
    reply = made["ModelInferResponse"](model_name=deployed.name, model_version=deployed.version, id=asked.id or "")
    for wanted in asked.wanted:
        facts, values = deployed.subject.outputs[wanted.index], outputs[wanted.index]
        if wanted.classes is None:
            reply.outputs.add(name=facts.name, datatype=datatype(values.dtype), shape=values.shape)
            reply.raw_output_contents.append(values.tobytes())
            continue
        texts = classified(values, wanted.classes, deployed.labels)
        shape = [len(values), len(texts) // len(values)]
        reply.outputs.add(name=facts.name, datatype=BYTES, shape=shape)
        reply.raw_output_contents.append(joined([text.encode() for text in texts]))
    return reply
