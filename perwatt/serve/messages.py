"""Messages of the Open Inference Protocol v2: a body to a Question, an Answer to a body.

Both forms of REST are here: all JSON, and JSON followed by raw tensors (the binary tensor data extension), where
the header Inference-Header-Content-Length tells where the JSON ends; 0 means that the body is the one input.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import orjson

from perwatt.errors import Refused
from perwatt.serve.datatypes import (
    BYTES,
    DATATYPES,
    checked_shape,
    datatype,
    elements,
    from_bytes,
    from_json,
    joined,
    malformed,
    unfitting,
)
from perwatt.serve.limits import HttpLimits
from perwatt.serve.service import TensorFacts

# What would need state between requests or memory of another process, and is therefore refused by name.
NOT_SERVED = ("sequence_id", "sequence_start", "sequence_end", "shared_memory_region")
MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class Wanted:
    """One output a client asks for; `classes` is the number of best classes to name instead of all values."""

    index: int
    binary: bool
    classes: int | None


@dataclass(frozen=True)
class Question:
    """One request for inference: a tensor float32 [images, ...], or encoded photographs still to be decoded."""

    tensor: np.ndarray | None
    photos: tuple[bytes | memoryview, ...]
    wanted: tuple[Wanted, ...]
    id: str | None
    timeout_s: float | None
    priority: int


@dataclass(frozen=True)
class Subject:
    """What a message is read against: the network's one input, its outputs, and whether it can take photographs."""

    input: TensorFacts
    outputs: tuple[TensorFacts, ...]
    takes_photos: bool

    @property
    def input_bytes(self) -> int:
        """Bytes of one image as a tensor."""
        return prod(self.input.shape) * self.input.dtype.itemsize


def question(body: bytes, json_length: int | None, subject: Subject, limits: HttpLimits, is_image: bool) -> Question:
    """Return what an infer body asks. Raises Refused (400, 413, 422) where it cannot be read or does not fit."""
    if json_length == 0:
        return _raw(body, subject, limits, is_image)
    end = len(body) if json_length is None else json_length
    if end > len(body):
        raise malformed(f"expected {end} bytes of JSON by its header, got a body of {len(body)}; mend the header")
    if end > limits.json_bytes:
        raise Refused(
            f"expected at most {limits.json_bytes} bytes of JSON, got {end}; send tensors in binary",
            reason="too_large",
            status=413,
        )
    return asked_in(_object(memoryview(body)[:end]), memoryview(body)[end:], subject, limits)


def asked_in(message: Mapping[str, Any], raw: memoryview, subject: Subject, limits: HttpLimits) -> Question:
    """Return what a message asks; `raw` is what follows its JSON. Raises Refused (400, 413, 422)."""
    inputs = message.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise unfitting(f"expected inputs: one tensor named {subject.input.name!r}, got {str(inputs)[:80]}")
    parameters = _parameters(message)
    tensor, photos = _input(inputs[0], raw, subject, limits)
    timeout_s, priority = schedule(parameters, limits)
    identity = message.get("id")
    if identity is not None and not isinstance(identity, str):
        raise malformed(f"expected id as a string, got {type(identity).__name__}")
    all_binary = parameters.get("binary_data_output", False) is True
    wanted = _wanted(message.get("outputs"), subject, all_binary)
    return Question(tensor, photos, wanted, identity, timeout_s, priority)


def schedule(parameters: Mapping[str, Any], limits: HttpLimits) -> tuple[float | None, int]:
    """Return the timeout in seconds and the priority of the schedule policy extension (microseconds; 1 is first)."""
    timeout = parameters.get("timeout", 0)
    priority = parameters.get("priority", 0)
    if type(timeout) is not int or not 0 <= timeout <= limits.longest_deadline_s * 1e6:
        raise malformed(
            f"timeout: expected whole microseconds up to {limits.longest_deadline_s * 1e6:.0f}, got {str(timeout)[:40]}"
        )
    if type(priority) is not int or not 0 <= priority < 1 << 31:
        raise malformed(f"priority: expected a whole number from 0, 1 being first, got {str(priority)[:40]}")
    return timeout / 1e6 if timeout else None, priority


def response(
    model: tuple[str, str],
    asked: Question,
    subject: Subject,
    outputs: Sequence[np.ndarray],
    labels: Sequence[str] | None,
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the length of its JSON when raw tensors follow it."""
    described: list[dict[str, Any]] = []
    raw: list[bytes | memoryview] = []
    for wanted in asked.wanted:
        facts, values = subject.outputs[wanted.index], outputs[wanted.index]
        one: dict[str, Any] = {"name": facts.name, "datatype": datatype(values.dtype), "shape": list(values.shape)}
        data: Any = None
        if wanted.classes is not None:
            texts = classified(values, wanted.classes, labels)
            one |= {"datatype": BYTES, "shape": [len(values), min(wanted.classes, values[0].size)]}
            data = joined([text.encode() for text in texts]) if wanted.binary else texts
        else:
            values = np.ascontiguousarray(values)
            data = values.data.cast("B") if wanted.binary else _numbers(values)
        if wanted.binary:
            one["parameters"] = {"binary_data_size": len(data)}
            raw.append(data)
        else:
            one["data"] = data
        described.append(one)
    whole: dict[str, Any] = {"model_name": model[0], "model_version": model[1], "outputs": described}
    if asked.id is not None:
        whole["id"] = asked.id
    head = orjson.dumps(whole, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([head, *raw]), len(head)) if raw else (head, None)


def classified(values: np.ndarray, classes: int, labels: Sequence[str] | None) -> list[str]:
    """Return value:index:label of the best classes of every image, best first (the classification extension)."""
    texts = []
    for one in values.reshape(len(values), -1):
        for index in best(one, classes):
            label = f":{labels[index]}" if labels is not None and index < len(labels) else ""
            texts.append(f"{one[index]!s}:{index}{label}")  # the shortest digits that are this value
    return texts


def best(values: np.ndarray, classes: int) -> list[int]:
    """Return the indices of the largest values, largest first, of equal ones the first; NaN comes last."""
    order = np.argsort(-values, kind="stable")[:classes]
    return [int(index) for index in order]


def default_question(subject: Subject, **parts: Any) -> Question:
    """Return a Question that asks for every output in binary; `parts` replace its fields."""
    wanted = tuple(Wanted(index, True, None) for index in range(len(subject.outputs)))
    usual: dict[str, Any] = {
        "tensor": None,
        "photos": (),
        "wanted": wanted,
        "id": None,
        "timeout_s": None,
        "priority": 0,
    }
    return Question(**{**usual, **parts})


def checked_images(shape: tuple[int, ...], subject: Subject, limits: HttpLimits) -> None:
    """Check a tensor's shape against the network's input. Raises Refused (422, 413)."""
    facts = subject.input
    if len(shape) != len(facts.shape) + 1 or shape[1:] != facts.shape or shape[0] < 1:
        raise unfitting(f"input {facts.name!r}: expected shape {[-1, *facts.shape]}, got {list(shape)}")
    checked_number(shape[0], limits)


def checked_number(images: int, limits: HttpLimits) -> None:
    """Check the number of images of one request. Raises Refused (413)."""
    if images > limits.images_per_request:
        raise Refused(
            f"expected at most {limits.images_per_request} images in a request, got {images}; send several requests",
            reason="too_large",
            status=413,
        )


def _object(text: memoryview) -> dict[str, Any]:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise malformed(f"expected JSON, got text that breaks it: {str(error)[:120]}") from error
    if not isinstance(found, dict):
        raise malformed(f"expected a JSON object, got {type(found).__name__}")
    return found


def _parameters(holder: Mapping[str, Any]) -> dict[str, Any]:
    found = holder.get("parameters", {})
    if not isinstance(found, dict):
        raise malformed(f"expected parameters as an object, got {type(found).__name__}")
    for name in NOT_SERVED:
        if found.get(name):
            raise unfitting(f"parameter {name!r}: expected none, for this server keeps nothing between requests")
    return found


def _raw(body: bytes, subject: Subject, limits: HttpLimits, is_image: bool) -> Question:
    """Return the Question of a body that is the one input and nothing else."""
    if is_image:
        return default_question(subject, photos=(body,))
    images, rest = divmod(len(body), subject.input_bytes)
    if rest or not images:
        raise malformed(f"expected a multiple of {subject.input_bytes} bytes, one image each, got {len(body)}")
    checked_number(images, limits)
    facts = subject.input
    return default_question(
        subject, tensor=from_bytes(facts.name, memoryview(body), (images, *facts.shape), facts.dtype)
    )


def _input(
    given: Mapping[str, Any], raw: memoryview, subject: Subject, limits: HttpLimits
) -> tuple[np.ndarray | None, tuple[bytes | memoryview, ...]]:
    name = subject.input.name
    if given.get("name") != name:
        raise unfitting(f"expected the input {name!r}, got {str(given.get('name'))[:80]!r}")
    shape = checked_shape(name, given.get("shape"))
    size = _parameters(given).get("binary_data_size")
    if size is not None and (type(size) is not int or size != raw.nbytes):
        raise malformed(
            f"input {name!r}: expected binary_data_size {raw.nbytes}, as follows the JSON, got {size!r:.40}"
        )
    if size is None and raw.nbytes:
        raise malformed(f"expected nothing after the JSON, got {raw.nbytes} bytes; name them with binary_data_size")
    if (size is None) == ("data" not in given):
        raise malformed(f"input {name!r}: expected either data or binary_data_size")
    if given.get("datatype") == BYTES and subject.takes_photos:
        checked_number(prod(shape), limits)
        if not prod(shape):
            raise unfitting(f"input {name!r}: expected at least one photograph, got shape {list(shape)}")
        return None, elements(name, raw, prod(shape)) if size is not None else _base64(name, given["data"], shape)
    expected = subject.input.dtype
    if DATATYPES.get(str(given.get("datatype"))) != expected:
        instead = " (or photographs as BYTES)" if subject.takes_photos else ""
        raise unfitting(
            f"input {name!r}: expected datatype {datatype(expected)}{instead}, got {str(given.get('datatype'))[:40]}"
        )
    checked_images(shape, subject, limits)
    if size is not None:
        return from_bytes(name, raw, shape, expected), ()
    return from_json(name, given["data"], shape, expected), ()


def _base64(name: str, data: object, shape: tuple[int, ...]) -> tuple[bytes, ...]:
    if not isinstance(data, list) or len(data) != prod(shape) or not all(isinstance(text, str) for text in data):
        raise malformed(f"input {name!r}: expected {prod(shape)} photographs as base64 strings in a flat list")
    try:
        return tuple(base64.b64decode(text, validate=True) for text in data)
    except (binascii.Error, ValueError) as error:
        raise malformed(f"input {name!r}: expected photographs as base64 strings, got others: {error}") from error


def _wanted(outputs: object, subject: Subject, all_binary: bool) -> tuple[Wanted, ...]:
    names = [facts.name for facts in subject.outputs]
    if outputs is None or outputs == []:
        return tuple(Wanted(index, all_binary, None) for index in range(len(names)))
    if not isinstance(outputs, list) or not all(isinstance(one, dict) for one in outputs):
        raise malformed("expected outputs as a list of objects")
    found = []
    for one in outputs:
        if one.get("name") not in names:
            raise unfitting(f"expected outputs among {', '.join(names)}, got {str(one.get('name'))[:80]!r}")
        parameters = _parameters(one)
        binary = parameters.get("binary_data", all_binary)
        classes = parameters.get("classification")
        if type(binary) is not bool:
            raise malformed(f"binary_data: expected true or false, got {str(binary)[:40]}")
        if classes is not None and (type(classes) is not int or not 0 < classes <= MOST_CLASSES):
            raise malformed(f"classification: expected the number of classes, got {str(classes)[:40]}")
        found.append(Wanted(names.index(one["name"]), binary, classes))
    if len({wanted.index for wanted in found}) != len(found):
        raise malformed("expected every output once, got one twice")
    return tuple(found)


def _numbers(values: np.ndarray) -> Any:
    # FP16 has no JSON form of its own; its values are exact in FP32.
    return values.ravel().astype(np.float32) if values.dtype == np.float16 else values.ravel()
