"""The Caffe reader: a prototxt and a caffemodel become a Graph, and a list of what became of each layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np

from perwatt.errors import InputError, NetworkError
from perwatt.graph.builder import Builder
from perwatt.graph.caffe_affine import taken_in
from perwatt.graph.caffe_inputs import Reading, checked_shape, declared_shape, read_shape, reading_of, subtract_mean
from perwatt.graph.caffe_layers import LAYERS, WEIGHTED, is_source
from perwatt.graph.caffe_place import Place
from perwatt.graph.caffe_text import parse
from perwatt.graph.caffe_upgrade import Layer, layers_of
from perwatt.graph.caffe_weights import Blob, read_mean, read_weights
from perwatt.graph.caffe_wiring import Dropped, Making, Wiring, wire
from perwatt.graph.graph import Graph, Node, Value

MeanAs = Literal["image", "values"]
SHOWN = 8  # names in a message


@dataclass(frozen=True)
class ImportedLayer:
    """One Caffe layer of the network: its nodes, the shape of its first top and how many numbers it has learned."""

    name: str
    type: str
    operators: tuple[str, ...]
    shape: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class Imported:
    """A Graph made of Caffe's files.

    A mean file gives a value for each channel and, from an image, its height and width: that of the pictures in
    training. `mean_inside` says that the network subtracts it. `reading` is what the file's own data layer did to
    pixels, None in deploy files. `unused` are layers whose weights the caffemodel has and the network does not need.
    """

    graph: Graph
    layers: tuple[ImportedLayer, ...]
    dropped: tuple[Dropped, ...]
    mean_values: tuple[float, ...] | None
    mean_size: tuple[int, int] | None
    mean_inside: bool
    reading: Reading | None
    unused: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class CaffeFiles:
    """What Caffe's files hold, before a Graph is made of it for some batch."""

    name: str
    wiring: Wiring
    weights: Mapping[str, tuple[Blob, ...]]
    mean: np.ndarray | None
    reading: Reading | None


def read_caffe(
    prototxt: str | Path,
    caffemodel: str | Path,
    mean: str | Path | None = None,
    *,
    batch: int | None = 1,
    shape: tuple[int, ...] | None = None,
    outputs: Sequence[str] = (),
    mean_as: MeanAs = "image",
) -> Imported:
    """Return the network that Caffe's TEST phase makes of these files, as a checked Graph.

    mean: a mean file (binaryproto or npy); as "image" it is subtracted inside the network, as "values" its mean for
    each channel is told and the caller subtracts. batch None keeps the files' own. shape: [channels, height, width]
    of the input instead of the prototxt's. outputs: blobs to end at; what does not lead to them is dropped.
    Raises NetworkError for files that cannot be used and InputError for arguments that cannot.
    """
    return build(load(prototxt, caffemodel, mean, outputs), batch, shape, mean_as)


def load(
    prototxt: str | Path, caffemodel: str | Path, mean: str | Path | None = None, outputs: Sequence[str] = ()
) -> CaffeFiles:
    """Return the files' content, checked as far as that goes without shapes. Raises NetworkError."""
    path = Path(prototxt)
    network = parse(path)
    kept, left = layers_of(network, str(path))
    wiring = wire(kept, left, outputs, str(path))
    _check_known(wiring, str(path))
    weights = read_weights(Path(caffemodel))
    _check_weighted(wiring, weights, str(caffemodel))
    average = None if mean is None else read_mean(Path(mean))
    name = _printable(network.name) or path.stem
    return CaffeFiles(name, wiring, weights, average, reading_of([*kept, *left]))


def build(
    files: CaffeFiles, batch: int | None = 1, shape: tuple[int, ...] | None = None, mean_as: MeanAs = "image"
) -> Imported:
    """Return the network of files that are loaded; arguments and errors as for `read_caffe`."""
    if mean_as not in get_args(MeanAs):
        raise InputError(f"mean_as: expected image or values, got {mean_as!r}")
    if batch is not None and batch < 1:
        raise InputError(f"batch: expected a whole number from 1 up, got {batch}; use 1 for one image at a time")
    mean, reading, wiring = files.mean, files.reading, files.wiring
    writing = _Writing(files.name, wiring, files.weights)
    for place in wiring.needed:
        if is_source(wiring.layers[place].type):
            writing.source(place, shape, batch)
    if mean is not None and mean_as == "image":
        writing.subtract(mean, 1.0 if reading is None else reading.scale)
    for place in wiring.needed:
        if not is_source(wiring.layers[place].type):
            writing.layer(place)
    values = None if mean is None else tuple(float(value) for value in mean.reshape(len(mean), -1).mean(axis=1))
    return Imported(
        writing.finish(),
        tuple(writing.rows),
        wiring.dropped,
        values,
        (int(mean.shape[1]), int(mean.shape[2])) if mean is not None and mean.ndim == 3 else None,
        mean is not None and mean_as == "image",
        reading,
        tuple(name for name in files.weights if name not in writing.used),
        _notes(files.weights, writing.used),
    )


class _Writing:
    """A Graph in the making, layer by layer."""

    def __init__(self, name: str, wiring: Wiring, weights: Mapping[str, tuple[Blob, ...]]) -> None:
        self.builder = Builder(name)
        self.wiring, self.weights = wiring, weights
        self.tensors: dict[Making, str] = {}
        self.taken: set[str] = set()
        self.inputs: list[str] = []
        self.rows: list[ImportedLayer] = []
        self.used: set[str] = set()
        self.followers: dict[int, Place] = {}

    def source(self, place: int, asked: tuple[int, ...] | None, batch: int | None) -> None:
        """Declare an input for each top of a data layer that is read."""
        layer = self.wiring.layers[place]
        for position, top in enumerate(layer.tops):
            readers = self.wiring.readers((place, position))
            if not readers and (place, position) not in [making for _, making in self.wiring.outputs]:
                continue
            if asked is not None and self.inputs:
                raise InputError(
                    f"input: expected a network of one input, got {self.inputs[0]!r} and {top!r}; give "
                    "their shapes in the prototxt"
                )
            shape = declared_shape(layer, position)
            if shape is None and layer.type != "Input":
                shape = read_shape(layer, self._channels(readers))
            self.taken.add(top)
            self.tensors[place, position] = self.builder.input(top, checked_shape(top, shape, asked, batch))
            self.inputs.append(top)

    def subtract(self, mean: np.ndarray, scale: float) -> None:
        """Take the mean from the network's one input of pictures."""
        pictures = [making for making, name in self.tensors.items() if len(self.builder.shape(name)) == 4]
        if len(pictures) != 1:
            raise InputError(f"mean: expected a network with one input of pictures, got {len(pictures)}; leave it out")
        name = self.tensors[pictures[0]]
        self.tensors[pictures[0]] = subtract_mean(self.builder, name, mean, scale)
        self.taken |= {f"{name}.mean", f"{name}/mean", f"{name}.scale", f"{name}/scale"}

    def layer(self, place: int) -> None:
        """Write one layer down."""
        layer, kind = self.wiring.layers[place], LAYERS[self.wiring.layers[place].type]
        inputs = tuple(self.tensors[making] for making in self.wiring.reads[place])
        here = self.followers.get(place)
        if here is not None:  # a Scale that its BatchNorm took in
            here.check_all_asked()
            self.tensors[place, 0] = inputs[0]
            self._row(here, inputs)
            return
        for what, count, (least, most) in (
            ("bottom", len(layer.bottoms), kind.bottoms),
            ("top", len(layer.tops), kind.tops),
        ):
            pool_mask = layer.type == "Pooling" and what == "top" and count == 2
            if not least <= count <= most and not pool_mask:
                wanted = str(least) if least == most else f"{least} or more" if most > 2 else f"{least} or {most}"
                wanted += f" {what}" if most == 1 else f" {what}s"
                raise NetworkError(
                    f"{layer.type} layer {layer.name!r}: expected {wanted}, got {count}; correct the prototxt"
                )
        here = self._place(layer, inputs)
        if layer.type == "BatchNorm":
            here.follower = self._follower(place, inputs)
        made = kind.write(here)
        here.check_all_asked()
        for position, name in enumerate(made):
            self.tensors[place, position] = name
        self._row(here, made)

    def finish(self) -> Graph:
        """Return the Graph; its outputs bear the names of their blobs."""
        names: dict[str, str] = {}
        for blob, making in self.wiring.outputs:
            if making not in self.tensors:
                layer = self.wiring.layers[making[0]]
                raise NetworkError(
                    f"{layer.type} layer {layer.name!r}: expected one top, got a second, {blob!r}, "
                    "which perwatt does not make; remove it, or name --outputs"
                )
            name = self.tensors[making]
            if name in self.inputs or name in names:
                name = str(self.builder.add("Identity", (name,)))
            names[name] = blob
        return _renamed(self.builder.finish(list(names)), names)

    def _place(self, layer: Layer, inputs: tuple[str, ...]) -> Place:
        wanted = title = layer.name or f"{layer.type.lower()}_{len(self.rows)}"
        count = 1
        while title in self.taken:
            title, count = f"{wanted}_{count}", count + 1
        if layer.name in self.weights:
            if layer.name in self.used:
                raise NetworkError(
                    f"layer {layer.name!r}: expected one layer of that name with weights, got two; "
                    "rename one in Caffe and save the weights again"
                )
            self.used.add(layer.name)
        return Place(layer, title, inputs, self.weights.get(layer.name), self.builder, self.taken)

    def _follower(self, place: int, inputs: tuple[str, ...]) -> Place | None:
        """Return the place of the one Scale that reads a BatchNorm, where the two can be one node."""
        readers = self.wiring.readers((place, 0))
        answer = any(making == (place, 0) for _, making in self.wiring.outputs)
        if len(readers) != 1 or answer or self.wiring.layers[readers[0]].type != "Scale":
            return None
        layer = self.wiring.layers[readers[0]]
        blobs = self.weights.get(self.wiring.layers[place].name, ())
        if len(blobs) == 5 or len(layer.bottoms) != 1 or len(layer.tops) != 1:
            return None
        behind = self._place(layer, inputs)
        if not taken_in(behind):
            self.used.discard(layer.name)
            return None
        self.followers[readers[0]] = behind
        return behind

    def _row(self, place: Place, made: Sequence[str]) -> None:
        learned = sum(place.blobs[at].array.size for at in place.asked) if place.blobs else 0
        shape = self.builder.shape(made[0])
        self.rows.append(ImportedLayer(place.layer.name, place.layer.type, tuple(place.operators), shape, learned))

    def _channels(self, readers: Sequence[int]) -> int | None:
        """Return how many channels the convolution that reads an input wants."""
        for place in readers:
            layer = self.wiring.layers[place]
            blobs = self.weights.get(layer.name, ())
            if layer.type == "Convolution" and blobs and blobs[0].array.ndim == 4:
                return int(blobs[0].array.shape[1] * layer.parameters.convolution_param.group)
        return None


def _check_known(wiring: Wiring, what: str) -> None:
    """Raise NetworkError when a layer that is needed has a type, or a field, that perwatt does not know."""
    needed = [wiring.layers[place] for place in wiring.needed]
    strange = [
        (line, name, layer.name)
        for layer in needed
        if layer.type in LAYERS or layer.type in ("", "Input")
        for line, name in layer.strange
    ]
    if strange:
        line, name, layer_name = strange[0]
        more = f" and {len(strange) - 1} others" if len(strange) > 1 else ""
        raise NetworkError(
            f"{what}: expected the fields of Caffe, got {name!r} in line {line}, layer {layer_name!r}{more}; correct "
            "the spelling, or remove what answers do not depend on"
        )
    unknown = [layer for layer in needed if layer.type not in LAYERS and not is_source(layer.type)]
    if unknown:
        kinds: dict[str, list[str]] = {}
        for layer in unknown:
            kinds.setdefault(layer.type or "(none)", []).append(layer.name)
        got = ", ".join(f"{kind} ({_few(names)})" for kind, names in kinds.items())
        raise NetworkError(
            f"{what}: expected layers of the types that perwatt knows, got {got}; end before them with --outputs, or "
            f"write them with the known types: {', '.join(LAYERS)}"
        )


def _check_weighted(wiring: Wiring, weights: Mapping[str, tuple[Blob, ...]], what: str) -> None:
    """Raise NetworkError when layers that have learned something are not in the weights' file."""
    missing = [
        layer.name
        for layer in (wiring.layers[place] for place in wiring.needed)
        if layer.type in WEIGHTED
        and layer.name not in weights
        and not (layer.type in ("Scale", "Bias") and len(layer.bottoms) > 1)
    ]
    if missing:
        near = get_close_matches(missing[0], weights, n=1, cutoff=0.6)
        hint = f"is {near[0]!r} the same layer as {missing[0]!r}?" if near else "is it the file of another network?"
        got = f"those of {_few(list(weights))}" if weights else "none"
        raise NetworkError(f"{what}: expected the weights of {_few(missing)}, got {got}; {hint}")


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} others"


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "_" for letter in name)


def _notes(weights: Mapping[str, tuple[Blob, ...]], used: set[str]) -> tuple[str, ...]:
    notes = []
    stored = sorted({blob.stored for name in used for blob in weights[name]})
    if stored and stored != ["float"]:
        notes.append(
            f"weights stored as {' and '.join(stored)} are rounded to float32"
            if "double" in stored
            else f"weights stored as {' and '.join(stored)}"
        )
    broken = [name for name in weights if name in used and not all(np.isfinite(b.array).all() for b in weights[name])]
    if broken:
        notes.append(f"weights that are NaN or infinite in {_few(broken)}: answers will be too")
    return tuple(notes)


def _renamed(graph: Graph, names: Mapping[str, str]) -> Graph:
    """Return the Graph with its outputs renamed to their blobs, unless an input or a constant bears that name.

    What a layer that works in place has overwritten gives its name away, and gets a new one.
    """
    fixed = {*graph.inputs, *graph.constants, *names}
    new = {old: name for old, name in names.items() if old != name and name not in fixed}
    for name in [name for name in new.values() if name in graph.values]:
        before = f"{name}/before"
        while before in graph.values:
            before += "_"
        new[name] = before

    def tensor(name: str) -> str:
        return new.get(name, name)

    nodes = tuple(
        Node(n.operator, n.name, tuple(map(tensor, n.inputs)), tuple(map(tensor, n.outputs)), n.attributes)
        for n in graph.nodes
    )
    values = {tensor(name): Value(tensor(name), v.shape, v.dtype) for name, v in graph.values.items()}
    return replace(graph, nodes=nodes, outputs=tuple(map(tensor, graph.outputs)), values=MappingProxyType(values))
