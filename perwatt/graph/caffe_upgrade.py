"""A Caffe network's layers in today's form, whatever syntax its text is in, and those of them that inference has.

layers { layer { name: "c" type: "conv" kernelsize: 3 } bottom: "x" top: "y" }      the oldest, of 2013
layers { name: "c" type: CONVOLUTION convolution_param { kernel_size: 3 } ... }     the old, of 2014
layer { name: "c" type: "Convolution" convolution_param { kernel_size: 3 } ... }    today's
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from perwatt.errors import NetworkError
from perwatt.graph.caffe_format import ENUMS, OLD_TYPES, PARAMETERS, STRANGE, text_message

TEST = ENUMS["Phase"]["TEST"]

# Types of the oldest syntax, in today's words.
OLDEST_TYPES: Mapping[str, str] = MappingProxyType(
    {
        **{name: name.title() for name in ("accuracy", "concat", "data", "dropout", "flatten", "sigmoid")},
        **{name: name.title() for name in ("softmax", "split", "padding")},
        "bnll": "BNLL",
        "conv": "Convolution",
        "euclidean_loss": "EuclideanLoss",
        "hdf5_data": "HDF5Data",
        "hdf5_output": "HDF5Output",
        "im2col": "Im2col",
        "images": "ImageData",
        "infogain_loss": "InfogainLoss",
        "innerproduct": "InnerProduct",
        "lrn": "LRN",
        "multinomial_logistic_loss": "MultinomialLogisticLoss",
        "pool": "Pooling",
        "relu": "ReLU",
        "softmax_loss": "SoftmaxWithLoss",
        "tanh": "TanH",
        "window_data": "WindowData",
    }
)
# Where each field of the oldest syntax goes: for a type, field -> (message, field). What trains is left behind.
_OLDEST_FIELDS: Mapping[str, Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "conv": {
            "num_output": ("convolution_param", "num_output"),
            "biasterm": ("convolution_param", "bias_term"),
            "pad": ("convolution_param", "pad"),
            "kernelsize": ("convolution_param", "kernel_size"),
            "group": ("convolution_param", "group"),
            "stride": ("convolution_param", "stride"),
        },
        "innerproduct": {
            "num_output": ("inner_product_param", "num_output"),
            "biasterm": ("inner_product_param", "bias_term"),
        },
        "pool": {
            "pool": ("pooling_param", "pool"),
            "pad": ("pooling_param", "pad"),
            "kernelsize": ("pooling_param", "kernel_size"),
            "stride": ("pooling_param", "stride"),
        },
        "lrn": {name: ("lrn_param", name) for name in ("local_size", "alpha", "beta", "k")},
        "dropout": {"dropout_ratio": ("dropout_param", "dropout_ratio")},
        "concat": {"concat_dim": ("concat_param", "concat_dim")},
    }
)
_OLDEST_TRANSFORM = {"scale": "scale", "meanfile": "mean_file", "cropsize": "crop_size", "mirror": "mirror"}
_OLD_TRANSFORM = ("scale", "mean_file", "crop_size", "mirror")
_READERS = ("data_param", "image_data_param", "window_data_param")


@dataclass(frozen=True)
class Layer:
    """One layer in today's form: `parameters` is its LayerParameter, `strange` the unknown fields as (line, name)."""

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    parameters: Any
    strange: tuple[tuple[int, str], ...] = ()


def layers_of(network: Any, what: str) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
    """Return the layers of a NetParameter that its TEST phase has, and the others, both in today's form and in order.

    Inputs that are declared beside the layers come first, as Input layers. Raises NetworkError when a layer has both
    rules that include and rules that exclude it, or the syntaxes are mixed.
    """
    if network.layer and network.layers:
        raise NetworkError(f"{what}: expected layers all called `layer` or all `layers`, got both; use one syntax")
    if network.layers:
        found = [_from_old(layer, what) for layer in network.layers]
        found = list(_without_padding(found, what))
    else:
        found = [_layer(layer.name, layer.type, layer, layer, _strange(layer)) for layer in network.layer]
    kept: list[Layer] = []
    left: list[Layer] = []
    for layer in (*_declared_inputs(network, what), *found):
        (kept if _takes_part(layer, network.state, what) else left).append(layer)
    return tuple(kept), tuple(left)


def _layer(name: str, kind: str, wiring: Any, parameters: Any, strange: tuple[tuple[int, str], ...]) -> Layer:
    if not all(text.isprintable() for text in (name, kind, *wiring.bottom, *wiring.top)):
        raise NetworkError(f"layer {name!r}: expected names of printable letters, got others; correct the prototxt")
    return Layer(name, kind, tuple(wiring.bottom), tuple(wiring.top), parameters, strange)


def _strange(message: Any) -> tuple[tuple[int, str], ...]:
    """Return every unknown field noted in a message and those inside of it."""
    found = []
    for field, value in message.ListFields():
        if field.name == STRANGE:
            found += [(int(line), name) for line, name in (entry.split(" ", 1) for entry in value)]
        elif field.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                found += _strange(inner)
    return tuple(sorted(found))


def _from_old(old: Any, what: str) -> Layer:
    """Return a layer of the two old syntaxes; a padding layer of the oldest keeps its pad in `convolution_param`."""
    made = text_message("LayerParameter")
    strange = _strange(old)
    if old.HasField("layer"):
        return _from_oldest(old, made, strange, what)
    made.include.extend(old.include)
    made.exclude.extend(old.exclude)
    for name, (_, number, _) in PARAMETERS.items():
        if number is not None and old.HasField(name):
            getattr(made, name).CopyFrom(getattr(old, name))
    for reader in _READERS:
        if old.HasField(reader):
            for name in _OLD_TRANSFORM:
                if getattr(old, reader).HasField(name):
                    setattr(made.transform_param, name, getattr(getattr(old, reader), name))
    names = dict(OLD_TYPES.values())
    return _layer(old.name, names[old.type], old, made, strange)


def _from_oldest(old: Any, made: Any, strange: tuple[tuple[int, str], ...], what: str) -> Layer:
    inner = old.layer
    if inner.type not in OLDEST_TYPES:
        raise NetworkError(
            f"{what}: expected a type of Caffe's oldest syntax, got {inner.type!r} in layer {inner.name!r}; it has "
            f"{', '.join(sorted(OLDEST_TYPES))}"
        )
    fields = _OLDEST_FIELDS.get("conv" if inner.type == "padding" else inner.type, {})
    for name, (message, field) in fields.items():
        if inner.HasField(name):
            target = getattr(made, message)
            if hasattr(getattr(target, field), "append"):
                getattr(target, field).append(getattr(inner, name))
            else:
                setattr(target, field, getattr(inner, name))
    for name, field in _OLDEST_TRANSFORM.items():
        if inner.HasField(name):
            setattr(made.transform_param, field, getattr(inner, name))
    return _layer(inner.name, OLDEST_TYPES[inner.type], old, made, strange)


def _without_padding(layers: list[Layer], what: str) -> Iterator[Layer]:
    """Yield the layers with the oldest syntax's padding layers merged into the convolutions and pools behind them."""
    pads: dict[str, tuple[str, int]] = {}
    for layer in layers:
        if layer.type == "Padding":
            if len(layer.bottoms) != 1 or len(layer.tops) != 1:
                raise NetworkError(f"{what}: expected one bottom and one top, got others in padding {layer.name!r}")
            pad = layer.parameters.convolution_param.pad
            pads[layer.tops[0]] = (layer.bottoms[0], pad[0] if pad else 0)
            continue
        padded = [name for name in layer.bottoms if name in pads]
        if padded:
            if layer.type not in ("Convolution", "Pooling"):
                raise NetworkError(
                    f"{what}: expected a padding layer before a convolution or pool, got it before {layer.name!r} of "
                    f"type {layer.type}; Caffe itself has no meaning for this"
                )
            source, pad = pads[padded[0]]
            if layer.type == "Convolution":
                layer.parameters.convolution_param.pad[:] = [pad]
            else:
                layer.parameters.pooling_param.pad = pad
            layer = Layer(layer.name, layer.type, (source,), layer.tops, layer.parameters, layer.strange)
        for name in layer.tops:
            pads.pop(name, None)
        yield layer


def _declared_inputs(network: Any, what: str) -> Iterator[Layer]:
    """Yield an Input layer for each input that is declared beside the layers, with its shape where one is given."""
    count = len(network.input)
    dims, shapes = list(network.input_dim), list(network.input_shape)
    if dims and shapes:
        raise NetworkError(f"{what}: expected input_dim or input_shape, got both; remove one")
    if (dims and len(dims) != 4 * count) or (shapes and len(shapes) not in (1, count)):
        got = f"{len(dims)} input_dim" if dims else f"{len(shapes)} input_shape"
        raise NetworkError(f"{what}: expected four input_dim or one input_shape for each of {count} inputs, got {got}")
    for position, name in enumerate(network.input):
        made = text_message("LayerParameter")
        if dims:
            made.input_param.shape.add().dim.extend(dims[4 * position : 4 * position + 4])
        elif shapes:
            made.input_param.shape.add().CopyFrom(shapes[min(position, len(shapes) - 1)])
        yield Layer(name, "Input", (), (name,), made)


def _takes_part(layer: Layer, state: Any, what: str) -> bool:
    """Return whether the TEST phase has a layer: a rule that includes it holds, or none that excludes it does."""
    include, exclude = layer.parameters.include, layer.parameters.exclude
    if include and exclude:
        raise NetworkError(f"{what}: expected include or exclude, got both in layer {layer.name!r}; remove one")
    if include:
        return any(_holds(rule, state) for rule in include)
    return not any(_holds(rule, state) for rule in exclude)


def _holds(rule: Any, state: Any) -> bool:
    stages = set(state.stage)
    return (
        (not rule.HasField("phase") or rule.phase == TEST)
        and (not rule.HasField("min_level") or state.level >= rule.min_level)
        and (not rule.HasField("max_level") or state.level <= rule.max_level)
        and set(rule.stage) <= stages
        and not set(rule.not_stage) & stages
    )
