"""Caffe's file format: the messages of a network's text and of its weights, as field numbers and types.

Each field is written "number type", with * behind the type where it repeats and "= value" where one that is not given
has a value. Numbers and types are those that Caffe's own files use (versions 0.1 to 1.0), whose names the text form
spells out. Fields that only forks of Caffe know are not here: `caffe_text.py` says what becomes of them.
"""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# In every message of the text form, what stands for a field that is not in the tables: its line and its name.
STRANGE = "perwatt_strange"
STRANGE_NUMBER = 2**29 - 1

# The names that old files give the types of layers, with the number of each and today's name.
OLD_TYPES: Mapping[str, tuple[int, str]] = MappingProxyType(
    {
        "NONE": (0, ""),
        "ACCURACY": (1, "Accuracy"),
        "BNLL": (2, "BNLL"),
        "CONCAT": (3, "Concat"),
        "CONVOLUTION": (4, "Convolution"),
        "DATA": (5, "Data"),
        "DROPOUT": (6, "Dropout"),
        "EUCLIDEAN_LOSS": (7, "EuclideanLoss"),
        "FLATTEN": (8, "Flatten"),
        "HDF5_DATA": (9, "HDF5Data"),
        "HDF5_OUTPUT": (10, "HDF5Output"),
        "IM2COL": (11, "Im2col"),
        "IMAGE_DATA": (12, "ImageData"),
        "INFOGAIN_LOSS": (13, "InfogainLoss"),
        "INNER_PRODUCT": (14, "InnerProduct"),
        "LRN": (15, "LRN"),
        "MULTINOMIAL_LOGISTIC_LOSS": (16, "MultinomialLogisticLoss"),
        "POOLING": (17, "Pooling"),
        "RELU": (18, "ReLU"),
        "SIGMOID": (19, "Sigmoid"),
        "SOFTMAX": (20, "Softmax"),
        "SOFTMAX_LOSS": (21, "SoftmaxWithLoss"),
        "SPLIT": (22, "Split"),
        "TANH": (23, "TanH"),
        "WINDOW_DATA": (24, "WindowData"),
        "ELTWISE": (25, "Eltwise"),
        "POWER": (26, "Power"),
        "SIGMOID_CROSS_ENTROPY_LOSS": (27, "SigmoidCrossEntropyLoss"),
        "HINGE_LOSS": (28, "HingeLoss"),
        "MEMORY_DATA": (29, "MemoryData"),
        "ARGMAX": (30, "ArgMax"),
        "THRESHOLD": (31, "Threshold"),
        "DUMMY_DATA": (32, "DummyData"),
        "SLICE": (33, "Slice"),
        "MVN": (34, "MVN"),
        "ABSVAL": (35, "AbsVal"),
        "SILENCE": (36, "Silence"),
        "CONTRASTIVE_LOSS": (37, "ContrastiveLoss"),
        "EXP": (38, "Exp"),
        "DECONVOLUTION": (39, "Deconvolution"),
    }
)

ENUMS: Mapping[str, Mapping[str, int]] = {
    "Phase": {"TRAIN": 0, "TEST": 1},
    "ShareMode": {"STRICT": 0, "PERMISSIVE": 1},
    "OldType": {name: number for name, (number, _) in OLD_TYPES.items()},
    # Forks have more, under numbers of their own; which library computes a layer does not change what it means.
    "Engine": {
        "DEFAULT": 0,
        "CAFFE": 1,
        "CUDNN": 2,
        "LIBDNN": 103,
        "INTEL_SPATIAL": 104,
        "MKL2017": 105,
        "MKLDNN": 106,
    },
    "PoolMethod": {"MAX": 0, "AVE": 1, "STOCHASTIC": 2},
    "RoundMode": {"CEIL": 0, "FLOOR": 1},
    "NormRegion": {"ACROSS_CHANNELS": 0, "WITHIN_CHANNEL": 1},
    "EltwiseOp": {"PROD": 0, "SUM": 1, "MAX": 2},
    "ReductionOp": {"SUM": 1, "ASUM": 2, "SUMSQ": 3, "MEAN": 4},
    "VarianceNorm": {"FAN_IN": 0, "FAN_OUT": 1, "AVERAGE": 2},
    "Normalization": {"FULL": 0, "VALID": 1, "BATCH_SIZE": 2, "NONE": 3},
    "Database": {"LEVELDB": 0, "LMDB": 1},
    "HingeNorm": {"L1": 1, "L2": 2},
}

_WINDOW = {"kernel_h": "uint32", "kernel_w": "uint32", "stride_h": "uint32", "stride_w": "uint32"}
_WEIGHTS = {"weight_filler": "FillerParameter", "bias_filler": "FillerParameter"}
_READING = {"source": "1 string", "scale": "2 float", "mean_file": "3 string", "batch_size": "4 uint32"}
_CROPPING = {"crop_size": "5 uint32", "mirror": "6 bool"}


def _numbered(fields: Mapping[str, str], *numbers: int) -> dict[str, str]:
    return {name: f"{number} {kind}" for (name, kind), number in zip(fields.items(), numbers, strict=True)}


# What a layer of any syntax may carry, with its number among the layers of today and (or None) in the syntax before.
PARAMETERS: Mapping[str, tuple[int, int | None, str]] = MappingProxyType(
    {
        "transform_param": (100, 36, "TransformationParameter"),
        "loss_param": (101, 42, "LossParameter"),
        "accuracy_param": (102, 27, "AccuracyParameter"),
        "argmax_param": (103, 23, "ArgMaxParameter"),
        "concat_param": (104, 9, "ConcatParameter"),
        "contrastive_loss_param": (105, 40, "ContrastiveLossParameter"),
        "convolution_param": (106, 10, "ConvolutionParameter"),
        "data_param": (107, 11, "DataParameter"),
        "dropout_param": (108, 12, "DropoutParameter"),
        "dummy_data_param": (109, 26, "DummyDataParameter"),
        "eltwise_param": (110, 24, "EltwiseParameter"),
        "exp_param": (111, 41, "ExpParameter"),
        "hdf5_data_param": (112, 13, "HDF5DataParameter"),
        "hdf5_output_param": (113, 14, "HDF5OutputParameter"),
        "hinge_loss_param": (114, 29, "HingeLossParameter"),
        "image_data_param": (115, 15, "ImageDataParameter"),
        "infogain_loss_param": (116, 16, "InfogainLossParameter"),
        "inner_product_param": (117, 17, "InnerProductParameter"),
        "lrn_param": (118, 18, "LRNParameter"),
        "memory_data_param": (119, 22, "MemoryDataParameter"),
        "mvn_param": (120, 34, "MVNParameter"),
        "pooling_param": (121, 19, "PoolingParameter"),
        "power_param": (122, 21, "PowerParameter"),
        "relu_param": (123, 30, "ReLUParameter"),
        "sigmoid_param": (124, 38, "EngineParameter"),
        "softmax_param": (125, 39, "SoftmaxParameter"),
        "slice_param": (126, 31, "SliceParameter"),
        "tanh_param": (127, 37, "EngineParameter"),
        "threshold_param": (128, 25, "ThresholdParameter"),
        "window_data_param": (129, 20, "WindowDataParameter"),
        "python_param": (130, None, "PythonParameter"),
        "prelu_param": (131, None, "PReLUParameter"),
        "reshape_param": (133, None, "ReshapeParameter"),
        "log_param": (134, None, "LogParameter"),
        "flatten_param": (135, None, "FlattenParameter"),
        "reduction_param": (136, None, "ReductionParameter"),
        "tile_param": (138, None, "TileParameter"),
        "batch_norm_param": (139, None, "BatchNormParameter"),
        "elu_param": (140, None, "ELUParameter"),
        "bias_param": (141, None, "BiasParameter"),
        "scale_param": (142, None, "ScaleParameter"),
        "input_param": (143, None, "InputParameter"),
        "crop_param": (144, None, "CropParameter"),
        "clip_param": (148, None, "ClipParameter"),
        "swish_param": (147, None, "SwishParameter"),
        "permute_param": (202, None, "PermuteParameter"),
    }
)

TEXT_MESSAGES: Mapping[str, Mapping[str, str]] = {
    "NetParameter": {
        "name": "1 string",
        "layers": "2 OldLayer*",
        "input": "3 string*",
        "input_dim": "4 int32*",
        "force_backward": "5 bool",
        "state": "6 NetState",
        "debug_info": "7 bool",
        "input_shape": "8 BlobShape*",
        "layer": "100 LayerParameter*",
    },
    "BlobShape": {"dim": "1 int64*"},
    "NetState": {"phase": "1 Phase = TEST", "level": "2 int32 = 0", "stage": "3 string*"},
    "NetStateRule": {
        "phase": "1 Phase",
        "min_level": "2 int32",
        "max_level": "3 int32",
        "stage": "4 string*",
        "not_stage": "5 string*",
    },
    "ParamSpec": {"name": "1 string", "share_mode": "2 ShareMode", "lr_mult": "3 float", "decay_mult": "4 float"},
    "LayerParameter": {
        "name": "1 string",
        "type": "2 string",
        "bottom": "3 string*",
        "top": "4 string*",
        "loss_weight": "5 float*",
        "param": "6 ParamSpec*",
        "include": "8 NetStateRule*",
        "exclude": "9 NetStateRule*",
        "phase": "10 Phase",
        "propagate_down": "11 bool*",
        **{name: f"{new} {kind}" for name, (new, _, kind) in PARAMETERS.items()},
    },
    "OldLayer": {
        "layer": "1 OldestLayer",
        "bottom": "2 string*",
        "top": "3 string*",
        "name": "4 string",
        "type": "5 OldType",
        "blobs_lr": "7 float*",
        "weight_decay": "8 float*",
        "include": "32 NetStateRule*",
        "exclude": "33 NetStateRule*",
        "loss_weight": "35 float*",
        "param": "1001 string*",
        "blob_share_mode": "1002 ShareMode*",
        **{name: f"{old} {kind}" for name, (_, old, kind) in PARAMETERS.items() if old is not None},
    },
    "OldestLayer": {
        "name": "1 string",
        "type": "2 string",
        "num_output": "3 uint32",
        "biasterm": "4 bool",
        **_numbered(_WEIGHTS, 5, 6),
        "pad": "7 uint32",
        "kernelsize": "8 uint32",
        "group": "9 uint32",
        "stride": "10 uint32",
        "pool": "11 PoolMethod",
        "dropout_ratio": "12 float",
        "local_size": "13 uint32",
        "alpha": "14 float",
        "beta": "15 float",
        "source": "16 string",
        "scale": "17 float",
        "meanfile": "18 string",
        "batchsize": "19 uint32",
        "cropsize": "20 uint32",
        "mirror": "21 bool",
        "k": "22 float",
        "blobs_lr": "51 float*",
        "weight_decay": "52 float*",
        "rand_skip": "53 uint32",
        "det_fg_threshold": "54 float",
        "det_bg_threshold": "55 float",
        "det_fg_fraction": "56 float",
        "det_context_pad": "58 uint32",
        "det_crop_mode": "59 string",
        "new_num": "60 int32",
        "new_channels": "61 int32",
        "new_height": "62 int32",
        "new_width": "63 int32",
        "shuffle_images": "64 bool",
        "concat_dim": "65 uint32",
        "hdf5_output_param": "1001 HDF5OutputParameter",
    },
    "TransformationParameter": {
        "scale": "1 float = 1",
        "mirror": "2 bool",
        "crop_size": "3 uint32 = 0",
        "mean_file": "4 string",
        "mean_value": "5 float*",
        "force_color": "6 bool",
        "force_gray": "7 bool",
    },
    "LossParameter": {"ignore_label": "1 int32", "normalize": "2 bool", "normalization": "3 Normalization"},
    "FillerParameter": {
        "type": "1 string",
        **_numbered(dict.fromkeys(("value", "min", "max", "mean", "std"), "float"), 2, 3, 4, 5, 6),
        "sparse": "7 int32",
        "variance_norm": "8 VarianceNorm",
    },
    "AccuracyParameter": {"top_k": "1 uint32", "axis": "2 int32", "ignore_label": "3 int32"},
    "ArgMaxParameter": {"out_max_val": "1 bool", "top_k": "2 uint32 = 1", "axis": "3 int32"},
    "BatchNormParameter": {
        "use_global_stats": "1 bool = 1",
        "moving_average_fraction": "2 float",
        "eps": "3 float = 1e-5",
    },
    "BiasParameter": {"axis": "1 int32 = 1", "num_axes": "2 int32 = 1", "filler": "3 FillerParameter"},
    "ClipParameter": {"min": "1 float", "max": "2 float"},
    "ConcatParameter": {"concat_dim": "1 uint32", "axis": "2 int32 = 1"},
    "ContrastiveLossParameter": {"margin": "1 float", "legacy_version": "2 bool"},
    "ConvolutionParameter": {
        "num_output": "1 uint32",
        "bias_term": "2 bool = 1",
        "pad": "3 uint32*",
        "kernel_size": "4 uint32*",
        "group": "5 uint32 = 1",
        "stride": "6 uint32*",
        **_numbered(_WEIGHTS, 7, 8),
        "pad_h": "9 uint32",
        "pad_w": "10 uint32",
        **_numbered(_WINDOW, 11, 12, 13, 14),
        "engine": "15 Engine",
        "axis": "16 int32 = 1",
        "force_nd_im2col": "17 bool",
        "dilation": "18 uint32*",
    },
    "CropParameter": {"axis": "1 int32 = 2", "offset": "2 uint32*"},
    "DataParameter": {
        **_READING,
        **_CROPPING,
        "rand_skip": "7 uint32",
        "backend": "8 Database",
        "force_encoded_color": "9 bool",
        "prefetch": "10 uint32",
    },
    "DropoutParameter": {"dropout_ratio": "1 float = 0.5", "scale_train": "2 bool = 1"},
    "DummyDataParameter": {
        "data_filler": "1 FillerParameter*",
        **_numbered(dict.fromkeys(("num", "channels", "height", "width"), "uint32*"), 2, 3, 4, 5),
        "shape": "6 BlobShape*",
    },
    "EltwiseParameter": {"operation": "1 EltwiseOp = SUM", "coeff": "2 float*", "stable_prod_grad": "3 bool"},
    "ELUParameter": {"alpha": "1 float = 1"},
    "EngineParameter": {"engine": "1 Engine"},
    "ExpParameter": {"base": "1 float = -1", "scale": "2 float = 1", "shift": "3 float = 0"},
    "FlattenParameter": {"axis": "1 int32 = 1", "end_axis": "2 int32 = -1"},
    "HDF5DataParameter": {"source": "1 string", "batch_size": "2 uint32", "shuffle": "3 bool"},
    "HDF5OutputParameter": {"file_name": "1 string"},
    "HingeLossParameter": {"norm": "1 HingeNorm"},
    "ImageDataParameter": {
        **_READING,
        **_CROPPING,
        "rand_skip": "7 uint32",
        "shuffle": "8 bool",
        "new_height": "9 uint32 = 0",
        "new_width": "10 uint32 = 0",
        "is_color": "11 bool = 1",
        "root_folder": "12 string",
    },
    "InfogainLossParameter": {"source": "1 string", "axis": "2 int32"},
    "InnerProductParameter": {
        "num_output": "1 uint32",
        "bias_term": "2 bool = 1",
        **_numbered(_WEIGHTS, 3, 4),
        "axis": "5 int32 = 1",
        "transpose": "6 bool = 0",
    },
    "InputParameter": {"shape": "1 BlobShape*"},
    "LogParameter": {"base": "1 float = -1", "scale": "2 float = 1", "shift": "3 float = 0"},
    "LRNParameter": {
        "local_size": "1 uint32 = 5",
        "alpha": "2 float = 1",
        "beta": "3 float = 0.75",
        "norm_region": "4 NormRegion = ACROSS_CHANNELS",
        "k": "5 float = 1",
        "engine": "6 Engine",
    },
    "MemoryDataParameter": _numbered(
        dict.fromkeys(("batch_size", "channels", "height", "width"), "uint32"), 1, 2, 3, 4
    ),
    "MVNParameter": {"normalize_variance": "1 bool = 1", "across_channels": "2 bool = 0", "eps": "3 float = 1e-9"},
    "PermuteParameter": {"order": "1 uint32*"},
    "PoolingParameter": {
        "pool": "1 PoolMethod = MAX",
        "kernel_size": "2 uint32",
        "stride": "3 uint32 = 1",
        "pad": "4 uint32 = 0",
        **_numbered(_WINDOW, 5, 6, 7, 8),
        "pad_h": "9 uint32",
        "pad_w": "10 uint32",
        "engine": "11 Engine",
        "global_pooling": "12 bool = 0",
        "round_mode": "13 RoundMode = CEIL",
    },
    "PowerParameter": {"power": "1 float = 1", "scale": "2 float = 1", "shift": "3 float = 0"},
    "PReLUParameter": {"filler": "1 FillerParameter", "channel_shared": "2 bool = 0"},
    "PythonParameter": {
        "module": "1 string",
        "layer": "2 string",
        "param_str": "3 string",
        "share_in_parallel": "4 bool",
    },
    "ReductionParameter": {"operation": "1 ReductionOp = SUM", "axis": "2 int32 = 0", "coeff": "3 float = 1"},
    "ReLUParameter": {"negative_slope": "1 float = 0", "engine": "2 Engine"},
    "ReshapeParameter": {"shape": "1 BlobShape", "axis": "2 int32 = 0", "num_axes": "3 int32 = -1"},
    "ScaleParameter": {
        "axis": "1 int32 = 1",
        "num_axes": "2 int32 = 1",
        "filler": "3 FillerParameter",
        "bias_term": "4 bool = 0",
        "bias_filler": "5 FillerParameter",
    },
    "SliceParameter": {"slice_dim": "1 uint32", "slice_point": "2 uint32*", "axis": "3 int32 = 1"},
    "SoftmaxParameter": {"engine": "1 Engine", "axis": "2 int32 = 1"},
    "SwishParameter": {"beta": "1 float = 1"},
    "ThresholdParameter": {"threshold": "1 float = 0"},
    "TileParameter": {"axis": "1 int32 = 1", "tiles": "2 int32"},
    "WindowDataParameter": {
        **_READING,
        **_CROPPING,
        **_numbered(dict.fromkeys(("fg_threshold", "bg_threshold", "fg_fraction"), "float"), 7, 8, 9),
        "context_pad": "10 uint32",
        "crop_mode": "11 string",
        "cache_images": "12 bool",
        "root_folder": "13 string",
    },
}

# Of the weights' file only what is needed, and messages inside others as bytes: a network of half a gigabyte is looked
# at layer by layer, its packed numbers are never copied one by one, and a hostile file cannot blow up in memory.
BINARY_MESSAGES: Mapping[str, Mapping[str, str]] = {
    "BinaryNet": {"name": "1 bytes", "layers": "2 bytes*", "layer": "100 bytes*"},
    "BinaryLayer": {"name": "1 bytes", "type": "2 bytes", "blobs": "7 bytes*"},
    "BinaryOldLayer": {"layer": "1 bytes", "name": "4 bytes", "type": "5 int32", "blobs": "6 bytes*"},
    "BinaryOldestLayer": {"name": "1 bytes", "type": "2 bytes", "blobs": "50 bytes*"},
    "BinaryBlob": {
        **_numbered(dict.fromkeys(("num", "channels", "height", "width"), "int64"), 1, 2, 3, 4),
        "data": "5 bytes*",  # packed floats; a file may split them
        "shape": "7 BlobShape",
        "double_data": "8 bytes*",
        "raw_data_type": "10 int32 = 1",  # NVIDIA's fork: 0 double, 1 float, 2 half
        "raw_data": "12 bytes",
    },
    # The same numbers one by one, each with its own tag: nobody writes them so, but a reader must take them.
    "BinaryPlainBlob": {"data": "5 float*", "double_data": "8 double*"},
    "BlobShape": {"dim": "1 int64*"},
}

_KINDS = {
    "double": 1, "float": 2, "int64": 3, "uint64": 4, "int32": 5, "bool": 8, "string": 9, "message": 11, "bytes": 12,
    "uint32": 13, "enum": 14,
}  # fmt: skip


def text_message(name: str) -> Any:
    """Return an empty message of the text form by its name in TEXT_MESSAGES."""
    return _classes("text")[name]()


def binary_message(name: str) -> Any:
    """Return an empty message of the weights' file by its name in BINARY_MESSAGES."""
    return _classes("binary")[name]()


@cache
def _classes(form: str) -> dict[str, Any]:
    """Return the class of every message, in a pool of their own: other libraries may hold Caffe's messages too."""
    messages = TEXT_MESSAGES if form == "text" else BINARY_MESSAGES
    file = descriptor_pb2.FileDescriptorProto(name=f"perwatt/caffe_{form}", package="perwatt", syntax="proto2")
    for name, values in ENUMS.items():
        # Names of values must differ within a file, so each list of them lives inside a message of its own.
        outer = file.message_type.add(name=f"Of{name}")
        listed = outer.enum_type.add(name=name)
        for value, number in values.items():
            listed.value.add(name=value, number=number)
    for name, fields in messages.items():
        made = file.message_type.add(name=name)
        for field, written in fields.items():
            _add_field(made, field, written)
        if form == "text":
            _add_field(made, STRANGE, f"{STRANGE_NUMBER} string*")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"perwatt.{name}")) for name in messages}


def _add_field(message: Any, name: str, written: str) -> None:
    number, rest = written.split(" ", 1)
    kind, _, default = (part.strip() for part in rest.partition("="))
    repeated, kind = kind.endswith("*"), kind.rstrip("*")
    field = message.field.add(name=name, number=int(number), label=3 if repeated else 1)
    if kind in ENUMS:
        field.type, field.type_name = _KINDS["enum"], f".perwatt.Of{kind}.{kind}"
    elif kind in _KINDS:
        field.type = _KINDS[kind]
    else:
        field.type, field.type_name = _KINDS["message"], f".perwatt.{kind}"
    if default:
        field.default_value = {"0": "false", "1": "true"}[default] if kind == "bool" else default
