"""The Open Inference Protocol's gRPC messages, described here in Python; field numbers and types are the protocol.

Each message is followed by its fields: name, type (`*`: repeated; `map`: text to the message named next), number, and
the oneof it belongs to. The classes are made at run time in a descriptor pool of their own, so that another library's
copy of the same protocol may live beside it.
"""

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
MESSAGES = """
ServerLiveRequest
ServerLiveResponse
  live bool 1
ServerReadyRequest
ServerReadyResponse
  ready bool 1
ModelReadyRequest
  name string 1
  version string 2
ModelReadyResponse
  ready bool 1
ServerMetadataRequest
ServerMetadataResponse
  name string 1
  version string 2
  extensions *string 3
ModelMetadataRequest
  name string 1
  version string 2
ModelMetadataResponse
  name string 1
  versions *string 2
  platform string 3
  inputs *ModelMetadataResponse.TensorMetadata 4
  outputs *ModelMetadataResponse.TensorMetadata 5
ModelMetadataResponse.TensorMetadata
  name string 1
  datatype string 2
  shape *int64 3
InferParameter
  bool_param bool 1 parameter_choice
  int64_param int64 2 parameter_choice
  string_param string 3 parameter_choice
  double_param double 4 parameter_choice
  uint64_param uint64 5 parameter_choice
InferTensorContents
  bool_contents *bool 1
  int_contents *int32 2
  int64_contents *int64 3
  uint_contents *uint32 4
  uint64_contents *uint64 5
  fp32_contents *float 6
  fp64_contents *double 7
  bytes_contents *bytes 8
ModelInferRequest
  model_name string 1
  model_version string 2
  id string 3
  parameters map InferParameter 4
  inputs *ModelInferRequest.InferInputTensor 5
  outputs *ModelInferRequest.InferRequestedOutputTensor 6
  raw_input_contents *bytes 7
ModelInferRequest.InferInputTensor
  name string 1
  datatype string 2
  shape *int64 3
  parameters map InferParameter 4
  contents InferTensorContents 5
ModelInferRequest.InferRequestedOutputTensor
  name string 1
  parameters map InferParameter 2
ModelInferResponse
  model_name string 1
  model_version string 2
  id string 3
  parameters map InferParameter 4
  outputs *ModelInferResponse.InferOutputTensor 5
  raw_output_contents *bytes 6
ModelInferResponse.InferOutputTensor
  name string 1
  datatype string 2
  shape *int64 3
  parameters map InferParameter 4
  contents InferTensorContents 5
ModelRepositoryParameter
  bool_param bool 1 parameter_choice
  int64_param int64 2 parameter_choice
  string_param string 3 parameter_choice
  bytes_param bytes 4 parameter_choice
RepositoryIndexRequest
  repository_name string 1
  ready bool 2
RepositoryIndexResponse
  models *RepositoryIndexResponse.ModelIndex 1
RepositoryIndexResponse.ModelIndex
  name string 1
  version string 2
  state string 3
  reason string 4
RepositoryModelLoadRequest
  repository_name string 1
  model_name string 2
  parameters map ModelRepositoryParameter 3
RepositoryModelLoadResponse
RepositoryModelUnloadRequest
  repository_name string 1
  model_name string 2
  parameters map ModelRepositoryParameter 3
RepositoryModelUnloadResponse
"""
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
    "float": _Field.TYPE_FLOAT,
    "double": _Field.TYPE_DOUBLE,
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
}


def classes() -> Mapping[str, Any]:
    """Return the class of every message, by its name; a nested one by its full name."""
    file = descriptor_pb2.FileDescriptorProto(name="perwatt_inference.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, descriptor_pb2.DescriptorProto] = {}
    message = None
    for line in MESSAGES.strip().splitlines():
        if not line.startswith(" "):
            outer, _, inner = line.rpartition(".")
            message = made[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=inner)
            made[line] = message
        else:
            assert message is not None
            _add(message, line.split(), made, line)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in made}


def _add(message: descriptor_pb2.DescriptorProto, words: list[str], made: Mapping[str, Any], line: str) -> None:
    name, kind = words[0], words[1]
    if kind == "map":  # a map is a repeated message of key and value
        entry_name = "".join(part.capitalize() for part in name.split("_")) + "Entry"
        entry = message.nested_type.add(name=entry_name)
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=_Field.TYPE_STRING, label=_Field.LABEL_OPTIONAL)
        entry.field.add(
            name="value", number=2, type=_Field.TYPE_MESSAGE, type_name=f".{PACKAGE}.{words[2]}",
            label=_Field.LABEL_OPTIONAL,
        )  # fmt: skip
        outer = next(full for full, each in made.items() if each is message)
        message.field.add(
            name=name, number=int(words[3]), type=_Field.TYPE_MESSAGE, label=_Field.LABEL_REPEATED,
            type_name=f".{PACKAGE}.{outer}.{entry_name}",
        )  # fmt: skip
        return
    label = _Field.LABEL_REPEATED if kind.startswith("*") else _Field.LABEL_OPTIONAL
    kind = kind.lstrip("*")
    field = message.field.add(name=name, number=int(words[2]), label=label)
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    if len(words) > 3:
        if not message.oneof_decl:
            message.oneof_decl.add(name=words[3])
        field.oneof_index = 0
