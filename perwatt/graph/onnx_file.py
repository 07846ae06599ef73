"""An ONNX file as it stands: parsed, complete and of an opset that is understood, or an error that says what is not."""

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import external_data_helper, inliner

from perwatt.errors import NetworkError

OLDEST_OPSET = 7
DOMAINS = ("", "ai.onnx.ml")  # what onnx itself defines for inference


def load(source: str | Path | bytes) -> onnx.ModelProto:
    """Return the model of a file, or of a file's bytes, with external data inside and local functions inlined.

    Raises NetworkError when there is no such file, it is no ONNX file or a damaged one, weights are missing or larger
    than they say, the opset is older than 7 or newer than the installed onnx, or an operator is in no ONNX domain.
    """
    what, data, folder = _bytes(source)
    if not data:
        raise NetworkError(f"{what}: expected an ONNX file, got an empty one; export or download it again")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise NetworkError(
            f"{what}: expected an ONNX file, got {len(data)} bytes that are none, or only part of one; "
            "export or download it again"
        ) from error
    if not model.HasField("graph") or not model.opset_import or model.ir_version < 1:
        missing = "graph" if not model.HasField("graph") else "opset"
        raise NetworkError(
            f"{what}: expected an ONNX file, got {len(data)} bytes without a {missing}; export or download it again"
        )
    if not model.graph.node and not model.graph.output:
        raise NetworkError(f"{what}: expected a network, got a graph without outputs; export it again")
    names = [*_names(model.graph), *(entry.domain for entry in model.opset_import)]
    if any(isinstance(name, bytes) or "\n" in name for name in names):  # protobuf hands out what is no UTF-8 as bytes
        raise NetworkError(f"{what}: expected names that are text, got a damaged one; export or download it again")
    _check_opset(model, what)
    _pull_in(model, what, folder)
    if model.functions:
        model = inliner.inline_local_functions(model)
    _check_operators(model, what)
    return model


def opset(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators that a model means."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def domain_of(node: onnx.NodeProto) -> str:
    """Return a node's domain; ONNX's own has two names, here it is the empty one."""
    return "" if node.domain == "ai.onnx" else str(node.domain)


def _bytes(source: str | Path | bytes) -> tuple[str, bytes, Path | None]:
    if isinstance(source, bytes | bytearray | memoryview):
        return "the bytes given", bytes(source), None
    path = Path(source)
    if path.is_dir():
        raise NetworkError(f"{path}: expected an ONNX file, got a folder; name the .onnx file in it")
    try:
        return str(path), path.read_bytes(), path.parent
    except FileNotFoundError as error:
        raise NetworkError(f"{path}: expected an ONNX file, got no such file; check the path") from error
    except OSError as error:
        raise NetworkError(
            f"{path}: expected an ONNX file that can be read, got {error.strerror}; check the path and its permissions"
        ) from error


def _check_opset(model: onnx.ModelProto, what: str) -> None:
    newest = onnx.defs.onnx_opset_version()
    named = [int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not named:
        got = ", ".join(entry.domain for entry in model.opset_import)
        raise NetworkError(f"{what}: expected ONNX's own operators, got those of {got} only; export it to plain ONNX")
    if named[0] < OLDEST_OPSET:
        raise NetworkError(f"{what}: expected opset {OLDEST_OPSET} to {newest}, got {named[0]}; export it again")
    if named[0] > newest:
        raise NetworkError(
            f"{what}: expected opset {OLDEST_OPSET} to {newest}, got {named[0]}; install a newer onnx, or export "
            f"with opset {newest}"
        )


def _names(graph: onnx.GraphProto) -> Iterator[str | bytes]:
    for entries in (graph.input, graph.output, graph.initializer):
        yield from (entry.name for entry in entries)
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (entry.name for entry in node.attribute)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _tensors(inner)


def _pull_in(model: onnx.ModelProto, what: str, folder: Path | None) -> None:
    """Load what lies in other files beside the model into it."""
    if model.graph.sparse_initializer:
        name = model.graph.sparse_initializer[0].values.name
        raise NetworkError(f"{what}: expected dense weights, got the sparse {name!r}; export them dense")
    outside = [tensor for tensor in _tensors(model.graph) if external_data_helper.uses_external_data(tensor)]
    for tensor in outside:
        location = external_data_helper.ExternalDataInfo(tensor).location
        if folder is None:
            raise NetworkError(
                f"{what}: expected weights inside, got {tensor.name!r} in the file {location!r}; give the path instead"
            )
        place = folder / location
        if folder.resolve() not in place.resolve().parents:
            raise NetworkError(f"{what}: expected weights beside the model, got {location!r}; move the file there")
        if not place.is_file():
            raise NetworkError(
                f"{what}: expected the weights {tensor.name!r} in {place}, got no such file; put it beside the model"
            )
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except (OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise NetworkError(
                f"{what}: expected the weights {tensor.name!r} in {place}, got a file that does not hold them "
                f"({reason}); download it again"
            ) from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _check_operators(model: onnx.ModelProto, what: str) -> None:
    versions = {entry.domain: int(entry.version) for entry in model.opset_import}
    own = opset(model)
    for node in model.graph.node:
        domain = domain_of(node)
        where = f"{node.op_type} node {node.name or (node.output[0] if node.output else '')!r}"
        if domain not in DOMAINS:
            raise NetworkError(
                f"{what}: expected operators that ONNX defines, got {where} of domain {domain!r}; export it without "
                "custom operators"
            )
        version = own if domain == "" else versions.get(domain, 1)
        if not onnx.defs.has(node.op_type, version, domain):
            raise NetworkError(
                f"{what}: expected operators of ONNX opset {version}, got the unknown {where}; correct or export it "
                "again"
            )


def self_contained(source: str | Path | bytes) -> bytes:
    """Return an ONNX file's bytes with all its weights inside; the author's own bytes where they are so already.

    Raises NetworkError as `load` does, and when the whole is too large for one file.
    """
    what, data, _ = _bytes(source)
    parsed = load(source)
    own = onnx.ModelProto.FromString(data)
    if not any(external_data_helper.uses_external_data(tensor) for tensor in _tensors(own.graph)):
        return data
    try:
        return bytes(parsed.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise NetworkError(f"{what}: expected less than 2 GB with its weights inside, got more ({error})") from error
