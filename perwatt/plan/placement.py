"""Placement: a Graph becomes a list of steps, every tensor gets a layout and a place in some buffer.

Reorder steps are put in where layouts differ. Concat on channels becomes views of one buffer wherever its parts fill
whole vectors, at any batch; reshapes that move nothing become views too.

The first steps, as long as each image passes through them on its own, form the imagewise part: it can run repeatedly
over a part of the batch (depth first, so that activations stay in cache; see levels.py), while the rest sees the whole
batch at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from types import MappingProxyType

import numpy as np

from perwatt.errors import UnsupportedOperator
from perwatt.graph import Attribute, Graph, Node
from perwatt.machine import Machine
from perwatt.plan.algorithm import Layout, Step, Tensor
from perwatt.plan.halves import stored_elements
from perwatt.plan.layouts import layout_of
from perwatt.plan.levels import Level, images_of, nest, walk
from perwatt.plan.precision import FP32_NETWORK, Element, Precision

# Activations of a step that the caches shared by all cores surely hold, beside weights and working memory.
FITS_BYTES = 10 * 2**20
# Steps that treat each image on its own when their tensors are 4-D and blocked.
IMAGEWISE = {
    "Reorder", "FusedConv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LRN",
    "Concat",
}  # fmt: skip


FIND_PLACES = {"ArgMax", "ArgMin"}
MOVE_PLACES = {"Concat", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: a buffer's name, the offset of its first float in it, and floats from image to image.

    `images` is how many images the buffer holds: part of the batch where only steps of one level see it.
    """

    buffer: str
    offset: int
    image_floats: int
    images: int

    def start(self, first_image: int) -> int:
        """Return the offset in floats of an image of the batch."""
        return self.offset + first_image % self.images * self.image_floats


@dataclass(frozen=True)
class Placement:
    """The steps of a network on one machine, and where their tensors lie.

    Buffers named after graph inputs and outputs belong to the caller, the others to the arena. Steps run in the order
    of `sequence`.
    """

    steps: tuple[Step, ...]
    places: Mapping[str, Place]
    buffer_floats: Mapping[str, int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batch: int
    levels: tuple[Level, ...]

    def sequence(self) -> Iterator[tuple[int, int]]:
        """Yield (first image, position of the step) in the order in which the steps run."""
        return walk(self.levels, self.batch, len(self.steps))

    def repeats(self, position: int) -> int:
        """Return how often a step runs for one batch."""
        return self.batch // images_of(self.levels, self.batch, position)


@dataclass
class _Draft:
    graph: Graph
    machine: Machine
    threads: int
    precision: Precision
    steps: list[Step] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    # A view: the tensor it lies in, and its first channel block (blocked) there; plain views lie at the start.
    views: dict[str, tuple[str, int]] = field(default_factory=dict)
    # Graph tensor -> the name under which it exists in each layout.
    names: dict[tuple[str, Layout], str] = field(default_factory=dict)
    flattened: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    produced: set[str] = field(default_factory=set)

    @property
    def lanes(self) -> int:
        return self.machine.vector_floats


def place(
    graph: Graph, machine: Machine, threads: int, images: Sequence[int] = (), precision: Precision = FP32_NETWORK
) -> Placement:
    """Return the steps of a Graph that the passes have been applied to.

    `images` are the parts of the batch that the imagewise part takes at a time, see `levels.nest`; none: all of it.
    Raises UnsupportedOperator for what no kernel takes: tensors that are not float32, and empty ones.
    """
    _check(graph)
    draft = _Draft(graph, machine, threads, precision)
    for name in graph.inputs:
        _declare(draft, name, graph.values[name].shape, "plain")
        draft.produced.add(name)
    for node in graph.nodes:
        _add_node(draft, node)
    for name in graph.outputs:
        if name in graph.constants:
            _declare(draft, name, graph.values[name].shape, "plain")
    plain = [_in_layout(draft, name, "plain") for name in graph.outputs]
    outputs: list[str] = []
    for graph_name, name in zip(graph.outputs, plain, strict=True):
        outputs.append(_own_output(draft, graph_name, name, outputs))
    return _settle(draft, tuple(outputs), images)


def _check(graph: Graph) -> None:
    """Refuse what kernels would misread: to them a number is a float32, and every loop has a first round.

    The whole numbers that ArgMax and ArgMin find are float32 too, until a Model hands them out as int64.
    """
    places: set[str] = set()
    for node in graph.nodes:
        if node.operator in FIND_PLACES or (node.operator in MOVE_PLACES and places.issuperset(node.inputs)):
            places.update(node.outputs)
        values = [graph.values[n] for n in (*node.inputs, *node.outputs) if n and n not in graph.constants]
        for value in values:
            where = f"{node.operator} (node {node.name!r})"
            if value.dtype != np.float32 and value.name not in places:
                raise UnsupportedOperator(
                    f"{where}: {value.name!r} is {value.dtype}, perwatt's engine computes in float32 only; convert the "
                    "network, or leave this to another engine"
                )
            if 0 in value.shape:
                raise UnsupportedOperator(
                    f"{where}: {value.name!r} of shape {value.shape} is empty, perwatt's engine expects at least one "
                    "element; drop what makes it"
                )
    for name in (*graph.inputs, *graph.outputs):
        value = graph.values[name]
        if (value.dtype != np.float32 and name not in places) or 0 in value.shape:
            raise UnsupportedOperator(
                f"{name!r} is {value.dtype} {value.shape}; perwatt's engine takes and gives float32 of at least one "
                "element; convert the network"
            )


def _declare(draft: _Draft, name: str, shape: tuple[int, ...], layout: Layout, source: str | None = None) -> str:
    """Record a tensor in its own dense form; views get their strides when everything is known."""
    known = source if source is not None else name
    draft.names.setdefault((known, layout), name)
    draft.tensors[name] = dense(name, shape, layout, draft.lanes)
    return name


def dense(name: str, shape: tuple[int, ...], layout: Layout, lanes: int, element: Element = "fp32") -> Tensor:
    """Return a tensor that shares its buffer with no other."""
    if layout == "plain":
        return Tensor(name, shape, "plain", prod(shape[1:]), 0)
    vector = lanes if element == "fp32" else lanes // 2
    if len(shape) == 2:
        return Tensor(name, shape, "blocked", vector, shape[0] * vector, element)
    plane = prod(shape[2:]) * vector
    return Tensor(name, shape, "blocked", -(-shape[1] // lanes) * plane, plane, element)


def floats(tensor: Tensor, lanes: int) -> int:
    """Return how many floats' room a dense tensor fills."""
    if tensor.layout == "plain":
        return prod(tensor.shape)
    vector = lanes if tensor.element == "fp32" else lanes // 2
    return tensor.shape[0] * -(-tensor.shape[1] // lanes) * vector * prod(tensor.shape[2:])


def _add_step(
    draft: _Draft, name: str, operator: str, inputs: tuple[str | None, ...], outputs: tuple[str, ...],
    attributes: Mapping[str, Attribute], constants: Mapping[str, np.ndarray],
) -> None:  # fmt: skip
    given = tuple(None if n is None else draft.tensors[n] for n in inputs)
    made = tuple(draft.tensors[n] for n in outputs)
    allowed = draft.precision.of(name)
    draft.steps.append(Step(name, operator, given, made, attributes, constants, draft.machine, draft.threads, allowed))
    draft.produced.update(outputs)


def _in_layout(draft: _Draft, name: str, layout: Layout) -> str:
    """Return the name of a graph tensor in a layout, adding a Reorder step when it is not there yet."""
    if (name, layout) in draft.names:
        return draft.names[(name, layout)]
    other: Layout = "plain" if layout == "blocked" else "blocked"
    source = draft.names[(name, other)]
    shape = draft.tensors[source].shape
    target = _declare(draft, f"{name}@{layout}", shape, layout, name)
    _add_step(draft, f"{name} to {layout}", "Reorder", (source,), (target,), MappingProxyType({}), {})
    return target


def _own_output(draft: _Draft, graph_name: str, name: str, earlier: Sequence[str]) -> str:
    """Return a plain tensor in a buffer of its own for a graph output, which may be an input, a view, or another's."""
    graph = draft.graph
    taken = {*graph.inputs, *graph.constants, *earlier}
    if name not in taken and name not in draft.views:
        return name
    root, _ = _root(draft, name)
    if root not in taken and draft.tensors[root].layout == "plain":
        # Turn the view around: what is computed is written into the caller's array at once.
        del draft.views[name]
        draft.views[root] = (name, 0)
        return name
    target = f"{graph_name}@output"
    draft.tensors[target] = dense(target, graph.values[graph_name].shape, "plain", draft.lanes)
    constants = {name: graph.constants[name]} if name in graph.constants else {}
    _add_step(draft, f"{graph_name} to output", "Identity", (name,), (target,), MappingProxyType({}), constants)
    return target


def _add_node(draft: _Draft, node: Node) -> None:
    graph = draft.graph
    if node.operator in ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity") and _as_view(draft, node):
        return
    constants = {n: graph.constants[n] for n in node.inputs if n in graph.constants}
    values = [graph.values[n] if n else None for n in node.inputs]
    have: Layout = "blocked" if any((n, "blocked") in draft.names for n in node.inputs) else "plain"
    known, made = [n in constants for n in node.inputs], graph.values[node.outputs[0]]
    wanted = layout_of(node, values, known, have, made, draft.lanes)
    if node.operator == "FusedConv" and node.inputs[0] in graph.inputs and _is_first_layer(node, draft):
        source: Layout = "plain"
    else:
        source = wanted
    inputs: list[str | None] = []
    for position, name in enumerate(node.inputs):
        if not name:
            inputs.append(None)
        elif name in constants:
            if name not in draft.tensors:
                draft.tensors[name] = dense(name, constants[name].shape, "plain", draft.lanes)
            inputs.append(name)
        else:
            inputs.append(_in_layout(draft, name, source if position == 0 else wanted))
    attributes = dict(node.attributes)
    if node.operator == "FusedGemm" and inputs[0] in draft.flattened:
        attributes["flattened"] = draft.flattened[str(inputs[0])]
    outputs = []
    for name in node.outputs:
        shape = graph.values[name].shape
        outputs.append(_declare(draft, name, shape, wanted if len(shape) >= 2 else "plain"))
    if node.operator == "Concat" and wanted == "blocked" and _concat_as_views(draft, node, inputs, outputs[0]):
        return
    _add_step(draft, node.name, node.operator, tuple(inputs), tuple(outputs), attributes, constants)


def _is_first_layer(node: Node, draft: _Draft) -> bool:
    channels = draft.graph.values[node.inputs[0]].shape[1]
    return channels <= draft.lanes // 2 and node.attributes["group"] == 1


def _as_view(draft: _Draft, node: Node) -> bool:
    """Make a reshaping node a view of its input, or the copy of whole vectors that a Flatten before products needs."""
    graph, source, target = draft.graph, node.inputs[0], node.outputs[0]
    shape, flat = graph.values[source].shape, graph.values[target].shape
    if source in graph.constants:
        return False
    readers = graph.consumers(target)
    into_products = readers and all(r.operator == "FusedGemm" and r.inputs[0] == target for r in readers)
    blocked = draft.names.get((source, "blocked"))
    if (
        blocked is not None and len(shape) == 4 and len(flat) == 2 and shape[0] == flat[0]
        and target not in graph.outputs and (into_products or shape[2:] == (1, 1))
    ):  # fmt: skip
        # In blocks of whole vectors: channels of the last block that do not exist count as inputs with zero weights.
        if not into_products and shape[1] % draft.lanes and shape[2:] != (1, 1):
            return False
        depth = -(-shape[1] // draft.lanes) * draft.lanes * prod(shape[2:])
        name = _declare(draft, f"{target}@flat", (flat[0], depth), "blocked", target)
        if shape[2:] == (1, 1):
            draft.tensors[name] = dense(name, flat, "blocked", draft.lanes)
        else:
            draft.flattened[name] = (shape[1], shape[2], shape[3])
        if shape[0] == 1:
            draft.views[name] = (blocked, 0)
        else:
            _add_step(draft, node.name, "FlattenBlocked", (blocked,), (name,), MappingProxyType({}), {})
        return True
    plain = _in_layout(draft, source, "plain")
    name = _declare(draft, target, flat, "plain")
    draft.views[name] = (plain, 0)
    return True


def _concat_as_views(draft: _Draft, node: Node, inputs: list[str | None], output: str) -> bool:
    """Let every part of a Concat be written where it belongs; False when some part cannot be."""
    names = [n for n in inputs if n is not None]
    own = {out.name for step in draft.steps for out in step.outputs}
    for position, name in enumerate(names):
        tensor = draft.tensors[name]
        last = position == len(names) - 1
        if (tensor.shape[1] % draft.lanes and not last) or name in draft.views or names.count(name) > 1:
            return False
        if name not in own and not any(parent == name for parent, _ in draft.views.values()):
            return False
    if len(draft.tensors[output].shape) != 4 or node.attributes["axis"] != 1:
        return False
    block = 0
    for name in names:
        draft.views[name] = (output, block)
        block += -(-draft.tensors[name].shape[1] // draft.lanes)
    return True


def _root(draft: _Draft, name: str) -> tuple[str, int]:
    """Return the tensor that owns the buffer a tensor lies in, and the first block there."""
    block = 0
    while name in draft.views:
        name, first = draft.views[name]
        block += first
    return name, block


def _settle(draft: _Draft, outputs: tuple[str, ...], images: Sequence[int]) -> Placement:
    """Give views their strides, cut the imagewise part into levels, and place every tensor."""
    graph, lanes = draft.graph, draft.lanes
    batch = batch_of(graph)
    imagewise = _imagewise_steps(draft, batch)
    first = draft.steps[:imagewise]
    levels = nest([_image_bytes(s) for s in first], [_weight_bytes(s) for s in first], images, batch, FITS_BYTES)
    held = _images_held(draft, levels, batch, {*outputs, *graph.inputs})
    callers = (*outputs, *graph.inputs)
    elements = stored_elements(draft.steps, lambda name: _root(draft, name)[0], callers, draft.precision)
    final: dict[str, Tensor] = {}
    places: dict[str, Place] = {}
    buffer_floats: dict[str, int] = {}
    for name, tensor in draft.tensors.items():
        if name in graph.constants:
            final[name] = tensor
            continue
        root_name, block = _root(draft, name)
        root = draft.tensors[root_name]
        count = held.get(root_name, batch)

        def cut(shape: tuple[int, ...], count: int = count) -> tuple[int, ...]:
            return (count, *shape[1:]) if shape and count < batch else shape

        element = elements.get(root_name, "fp32")
        root_final = dense(root_name, cut(root.shape), root.layout, lanes, element)
        buffer_floats[root_name] = floats(root_final, lanes)
        offset = block * root_final.block_stride
        if name == root_name or tensor.layout == "plain" or len(tensor.shape) != 4:
            final[name] = replace(dense(name, cut(tensor.shape), tensor.layout, lanes, element), shape=tensor.shape)
        else:
            strides = root_final.image_stride, root_final.block_stride
            final[name] = Tensor(name, tensor.shape, tensor.layout, *strides, element)
        places[name] = Place(root_name, offset, root_final.image_stride, count)

    def seen(tensor: Tensor | None, position: int) -> Tensor | None:
        """A tensor as one step sees it: as many images as the step takes at a time."""
        if tensor is None or tensor.name in graph.constants or position >= imagewise:
            return None if tensor is None else final[tensor.name]
        return replace(final[tensor.name], shape=(images_of(levels, batch, position), *tensor.shape[1:]))

    steps = tuple(
        replace(
            step,
            inputs=tuple(seen(t, position) for t in step.inputs),
            outputs=tuple(t for t in (seen(o, position) for o in step.outputs) if t is not None),
        )
        for position, step in enumerate(draft.steps)
    )
    return Placement(steps, places, buffer_floats, graph.inputs, outputs, batch, levels)


def _image_bytes(step: Step) -> int:
    """Return the bytes of activations that a step reads and writes for one image."""
    tensors = (t for t in (*step.inputs, *step.outputs) if t is not None and t.name not in step.constants)
    return sum(4 * prod(t.shape[1:]) for t in tensors)


def _weight_bytes(step: Step) -> int:
    """Return the bytes of a step's constants, four times for the 3x3 and larger windows that Winograd transforms."""
    return sum(a.nbytes * (4 if a.ndim == 4 and min(a.shape[2:]) > 1 else 1) for a in step.constants.values())


def _images_held(draft: _Draft, levels: Sequence[Level], batch: int, callers: set[str]) -> dict[str, int]:
    """Return how many images each buffer holds: as many as the outermost level takes that sees it."""
    held: dict[str, int] = {}
    for position, step in enumerate(draft.steps):
        for name in _names(step):
            root, _ = _root(draft, name)
            held[root] = max(held.get(root, 0), images_of(levels, batch, position))
    for name in callers:
        held[_root(draft, name)[0]] = batch
    return held


def _names(step: Step) -> list[str]:
    return [t.name for t in (*step.inputs, *step.outputs) if t is not None and t.name not in step.constants]


def batch_of(graph: Graph) -> int:
    """Return the first size of the first input: how many images go in; 1 for a graph that has none."""
    shape = graph.values[graph.inputs[0]].shape if graph.inputs else ()
    return shape[0] if shape else 1


def _imagewise_steps(draft: _Draft, batch: int) -> int:
    """Return how many of the first steps take each image on its own."""
    for count, step in enumerate(draft.steps):
        tensors = [t for t in (*step.inputs, *step.outputs) if t is not None and t.name not in step.constants]
        if step.operator not in IMAGEWISE | ELEMENTWISE_BLOCKED:
            return count
        if any(len(t.shape) != 4 or t.shape[0] != batch for t in tensors):
            return count
        if any(t.layout == "plain" for t in tensors if t.name not in draft.graph.inputs):
            return count
    return len(draft.steps)


ELEMENTWISE_BLOCKED = {
    "Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Silu", "Elu", "Add", "Sub", "Mul",
    "Div", "Max", "Min", "Sum",
}  # fmt: skip
