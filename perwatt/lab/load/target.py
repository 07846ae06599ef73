"""From an address to prepared requests: whole photographs for a server that decodes them, or binary tensors."""

import hashlib
import http.client
import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from perwatt.errors import InputError
from perwatt.lab.load.generator import Endpoint
from perwatt.lab.load.record import ShotFacts, Target
from perwatt.lab.load.shot import Shot, post
from perwatt.lab.photographs import input_batches
from perwatt.lab.record import Photograph
from perwatt.package.preprocessing import Preprocessing

DEADLINE_HEADER = "X-Request-Timeout-Ms"
LOOK_S = 10.0
MOST_PHOTOGRAPH_BYTES = 1 << 28  # of all photographs together, for their requests stay in memory
TENSORS = 32
MOST_TENSOR_BYTES = 1 << 28
_CONTENT_TYPES = {
    ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp", ".gif": "image/gif",
    ".bmp": "image/bmp", ".tif": "image/tiff", ".tiff": "image/tiff", ".avif": "image/avif",
}  # fmt: skip
# A tensor without its own rule is made as most networks of ImageNet want it.
_IMAGENET_MEAN = (123.675, 116.28, 103.53)
_IMAGENET_SCALE = (1 / 58.395, 1 / 57.12, 1 / 57.375)


@dataclass(frozen=True)
class Address:
    """A URL taken apart: where to connect, and the path that requests go to ('' for a server that is to be asked)."""

    url: str
    endpoint: Endpoint
    host: str
    path: str


@dataclass(frozen=True)
class Asking:
    """How to ask: models (none: the server's own list), tensors instead of photographs, deadline, more headers."""

    models: tuple[str, ...] = ()
    tensors: bool = False
    deadline_s: float | None = None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Prepared:
    """Requests that are ready to be sent, what they ask, and the photographs they were made from."""

    endpoint: Endpoint
    shots: tuple[Shot, ...]
    target: Target
    photographs: tuple[Photograph, ...]


def address(url: str) -> Address:
    """Return the parts of a URL; without a scheme it is HTTP. Raises InputError for anything but HTTP and HTTPS."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.username:
        raise InputError(f"URL: expected http://HOST:PORT or http://HOST:PORT/PATH, got {url!r}; check it")
    tls = parts.scheme == "https"
    path = parts.path.rstrip("/") + (f"?{parts.query}" if parts.query else "")
    whole = Endpoint(parts.hostname, port or (443 if tls else 80), tls)
    return Address(url, whole, parts.netloc, path)


def prepare(where: Address, asking: Asking, photos: Sequence[Path], seed: int, name: str = "server") -> Prepared:
    """Ask the server what it is, and make the requests.

    A path that ends in /infer gets binary tensors, any other path gets photographs; without a path the server is asked
    for its models. Raises InputError when the server does not answer, has no such model, or nothing can be made.
    """
    plain = (*asking.headers, *_deadline(asking))
    server, models = _asked(where, asking)
    binary = asking.tensors or where.path.endswith("/infer")
    shots: list[Shot] = []
    used: dict[str, Photograph] = {}
    if binary:
        for model in models:
            path = where.path or f"/v2/models/{quote(model)}/infer"
            facts = _metadata(where, path, asking)
            made, photographs = tensors(facts, photos, seed)
            used |= {photo.sha256: photo for photo in photographs}
            for number, tensor in enumerate(made):
                shots.append(tensor_shot(path, where.host, facts, tensor, f"tensor {number}", model, plain))
    else:
        contents = _contents(photos)
        for model in models:
            path = where.path or f"/v2/models/{quote(model)}/classify"
            for photo, content in contents:
                used[photo.sha256] = photo
                kind = _CONTENT_TYPES.get(Path(photo.name).suffix.lower(), "application/octet-stream")
                shots.append(
                    post(path, where.host, content, name=photo.name, model=model, content_type=kind, headers=plain)
                )
    options = {"models": ", ".join(models)} | ({"deadline header": DEADLINE_HEADER} if asking.deadline_s else {})
    target = Target(
        name=name,
        url=where.url,
        server=server,
        payload="tensors" if binary else "photographs",
        options=options,
        shots=tuple(map(shot_facts, shots)),
    )
    return Prepared(where.endpoint, tuple(shots), target, tuple(sorted(used.values(), key=lambda photo: photo.name)))


def shot_facts(shot: Shot) -> ShotFacts:
    """Return what a Record keeps of a shot."""
    return ShotFacts(
        name=shot.name,
        model=shot.model,
        bytes=len(shot.data),
        expects=tuple(sorted(shot.expects)),
        behaviour=shot.behaviour,
    )


def tensor_shot(
    path: str,
    host: str,
    facts: Mapping[str, Any],
    tensor: np.ndarray,
    name: str,
    model: str,
    headers: tuple[tuple[str, str], ...] = (),
) -> Shot:
    """Return an inference request with one binary float32 tensor, its answer asked for in binary too."""
    raw = np.ascontiguousarray(tensor, dtype="<f4").tobytes()
    asked = {
        "inputs": [
            {
                "name": facts["inputs"][0]["name"],
                "shape": list(tensor.shape),
                "datatype": "FP32",
                "parameters": {"binary_data_size": len(raw)},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(asked, separators=(",", ":")).encode()
    lengths = (("Inference-Header-Content-Length", str(len(head))),)
    return post(path, host, head + raw, name=name, model=model, headers=(*lengths, *headers))


def _deadline(asking: Asking) -> tuple[tuple[str, str], ...]:
    if asking.deadline_s is None:
        return ()
    return ((DEADLINE_HEADER, str(max(1, round(1000 * asking.deadline_s)))),)


def _asked(where: Address, asking: Asking) -> tuple[str | None, tuple[str, ...]]:
    """Return what the server says it is, and the models to ask."""
    status, content = _json(where, "GET", "/v2", asking)
    known = status == 200 and isinstance(content, dict)
    server = f"{content.get('name', 'unnamed')} {content.get('version', '')}".strip() if known else None
    if where.path:
        parts = where.path.partition("?")[0].split("/")
        name = parts[parts.index("models") + 1] if "models" in parts[:-1] else where.path
        return server, (name,)
    if not known:
        raise InputError(
            f"{where.url}: expected a server of the Open Inference Protocol (GET /v2), got status {status}; "
            "give the path that photographs are posted to, such as http://HOST:PORT/api/classify"
        )
    status, listed = _json(where, "POST", "/v2/repository/index", asking)
    names = [str(each["name"]) for each in listed if isinstance(each, dict) and "name" in each] if (
        status == 200 and isinstance(listed, list)
    ) else []  # fmt: skip
    if not asking.models:
        if not names:
            raise InputError(f"{where.url}: expected a server that lists its models, got status {status}; use --model")
        return server, tuple(dict.fromkeys(names))
    for model in asking.models:
        if names and model not in names:
            raise InputError(f"--model {model}: expected one of {', '.join(names)}; choose among them")
    return server, asking.models


def _metadata(where: Address, path: str, asking: Asking) -> Mapping[str, Any]:
    """Return a model's metadata. Raises InputError when there is none, or it has not one float input."""
    status, found = _json(where, "GET", path.removesuffix("/infer"), asking)
    inputs = found.get("inputs") if status == 200 and isinstance(found, dict) else None
    if not isinstance(inputs, list):
        raise InputError(f"{where.url}: expected the model's metadata at {path.removesuffix('/infer')}, got {status}")
    if len(inputs) != 1 or inputs[0].get("datatype") != "FP32":
        told = ", ".join(f"{each.get('name')} {each.get('datatype')}" for each in inputs)
        raise InputError(f"{path}: expected one FP32 input, got {told}; load tests make only such tensors")
    return dict(found)


def tensors(
    facts: Mapping[str, Any], photos: Sequence[Path], seed: int
) -> tuple[list[np.ndarray], tuple[Photograph, ...]]:
    """Return different inputs of batch 1: crops of photographs for an image network, else normal random numbers."""
    shape = [1 if position == 0 or length < 1 else int(length)
             for position, length in enumerate(facts["inputs"][0]["shape"])]  # fmt: skip
    size = 4 * int(np.prod(shape))
    if not 0 < size <= MOST_TENSOR_BYTES:
        raise InputError(f"tensor: expected at most {MOST_TENSOR_BYTES:,} bytes, got shape {shape}; use another model")
    count = max(2, min(TENSORS, MOST_TENSOR_BYTES // size))
    if len(shape) == 4 and shape[1] == 3:
        how = Preprocessing(
            size=(shape[2], shape[3]),
            resize_to=max(shape[2:]),
            interpolation="bilinear",
            channel_order="rgb",
            mean=_IMAGENET_MEAN,
            scale=_IMAGENET_SCALE,
        )
        batches, used = input_batches(how, photos, 1, count, seed)
        return list(batches), used
    random = np.random.RandomState(seed % 2**32)
    return [random.standard_normal(shape).astype(np.float32) for _ in range(count)], ()


def _contents(photos: Sequence[Path]) -> list[tuple[Photograph, bytes]]:
    found: list[tuple[Photograph, bytes]] = []
    total = 0
    for path in photos:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: expected a readable photograph, got: {error.strerror}; check it") from error
        total += len(content)
        if total > MOST_PHOTOGRAPH_BYTES and found:
            break  # what fits is enough to ask with; the Record names what was used
        found.append((Photograph(name=path.name, sha256=hashlib.sha256(content).hexdigest()), content))
    return found


def _json(where: Address, method: str, path: str, asking: Asking) -> tuple[int, Any]:
    """Return the status and the JSON (None when it is none) of one request. Raises InputError without an answer."""
    endpoint = where.endpoint
    connection: http.client.HTTPConnection
    if endpoint.tls:
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(endpoint.host, endpoint.port, timeout=LOOK_S, context=context)
    else:
        connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=LOOK_S)
    try:
        connection.request(method, path, body=b"{}" if method == "POST" else None, headers=dict(asking.headers))
        answer = connection.getresponse()
        body = answer.read(1 << 24)
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"{where.url}: expected a server there, got: {error or type(error).__name__}; "
            "start it (perwatt serve) or check the address"
        ) from error
    finally:
        connection.close()
    try:
        return answer.status, json.loads(body)
    except (ValueError, RecursionError):
        return answer.status, None
