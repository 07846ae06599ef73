"""Which Caffe layers inference needs: the names of blobs untangled, and everything left out that leads to no answer.

A blob's name may be made again and again, by layers that work in place: each use means the newest making so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from perwatt.errors import NetworkError
from perwatt.graph.caffe_layers import ANSWERS, is_sink, is_source
from perwatt.graph.caffe_upgrade import Layer

Making = tuple[int, int]  # a layer's place, and which of its tops


@dataclass(frozen=True)
class Dropped:
    """A layer that is not in the imported network, and why."""

    name: str
    type: str
    reason: str


@dataclass(frozen=True)
class Wiring:
    """The layers that are needed: each with the makings that it reads; and the outputs, by the names of their blobs."""

    layers: tuple[Layer, ...]
    reads: tuple[tuple[Making, ...], ...]
    needed: tuple[int, ...]
    outputs: tuple[tuple[str, Making], ...]
    dropped: tuple[Dropped, ...]

    def readers(self, making: Making) -> list[int]:
        """Return the needed layers that read a making."""
        return [place for place in self.needed if making in self.reads[place]]


def wire(layers: Sequence[Layer], left: Sequence[Layer], wanted: Sequence[str], what: str) -> Wiring:
    """Return what leads to the blobs `wanted`, or to everything that nobody reads where none are named.

    `left` are the layers that the TEST phase has not. Raises NetworkError when a blob is read that nobody makes, made
    twice, wanted but not there, or no layer is left.
    """
    layers = _with_answers(layers)
    reads, newest = _untangled(layers, left, what)
    if wanted:
        missing = [name for name in wanted if name not in newest]
        if missing:
            near = get_close_matches(missing[0], newest, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(list(newest)[-8:])} and others before"
            raise NetworkError(f"{what}: expected outputs that the network makes, got {missing[0]!r}; {hint}")
        outputs = tuple((name, newest[name]) for name in dict.fromkeys(wanted))
    else:
        outputs = _unread(layers, reads)
    needed: set[int] = set()
    open_ends = [place for _, (place, _) in outputs]
    while open_ends:
        place = open_ends.pop()
        if place not in needed:
            needed.add(place)
            open_ends += [source for source, _ in reads[place]]
    if not any(not is_source(layers[place].type) for place in needed):
        raise NetworkError(f"{what}: expected layers that lead from an input to an output, got none; name --outputs")
    dropped = [Dropped(layer.name, layer.type, "only in training") for layer in left]
    for place, layer in enumerate(layers):
        if place not in needed:
            dropped.append(Dropped(layer.name, layer.type, _reason(layer, bool(wanted))))
    return Wiring(tuple(layers), tuple(reads), tuple(sorted(needed)), outputs, tuple(dropped))


def _with_answers(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers with each loss that stands for an answer (SoftmaxWithLoss) turned into it (Softmax).

    Where the same answer is there already, the loss stays one, and is dropped later. The new top is called `prob`, or
    by the layer's name before it where there are several.
    """
    there = {(layer.type, layer.bottoms[:1]) for layer in layers}
    turned = [
        layer
        for layer in layers
        if layer.type in ANSWERS and layer.bottoms and (ANSWERS[layer.type], layer.bottoms[:1]) not in there
    ]
    tops = {top for layer in layers for top in layer.tops}
    made = []
    for layer in layers:
        if layer in turned:
            short = len(turned) == 1 and "prob" not in tops
            top = layer.tops[1] if len(layer.tops) > 1 else "prob" if short else f"{layer.name}/prob"
            layer = replace(layer, type=ANSWERS[layer.type], bottoms=layer.bottoms[:1], tops=(top,))
        made.append(layer)
    return made


def _untangled(
    layers: Sequence[Layer], left: Sequence[Layer], what: str
) -> tuple[list[tuple[Making, ...]], dict[str, Making]]:
    reads: list[tuple[Making, ...]] = []
    newest: dict[str, Making] = {}
    for place, layer in enumerate(layers):
        for name in layer.bottoms:
            if name not in newest:
                maker = next((other for other in left if name in other.tops), None)
                hint = f"only {maker.name!r} in training makes it, give the deploy prototxt" if maker else "correct it"
                raise NetworkError(
                    f"{what}: layer {layer.name!r} reads {name!r}: expected a layer before that makes "
                    f"it, got none; {hint}"
                )
        reads.append(tuple(newest[name] for name in layer.bottoms))
        for position, name in enumerate(layer.tops):
            if name in newest and name not in layer.bottoms:
                other = layers[newest[name][0]].name
                raise NetworkError(
                    f"{what}: expected each blob made once, or in place, got {name!r} from "
                    f"{other!r} and {layer.name!r}; rename one, or add the phase in which each is meant"
                )
            newest[name] = (place, position)
    return reads, newest


def _unread(layers: Sequence[Layer], reads: Sequence[tuple[Making, ...]]) -> tuple[tuple[str, Making], ...]:
    """Return what no layer reads but those that judge it; what they judge it by (labels) counts as read."""
    read = {
        making
        for layer, sources in zip(layers, reads, strict=True)
        for position, making in enumerate(sources)
        if position or not _judges(layer)
    }
    return tuple(
        (name, (place, position))
        for place, layer in enumerate(layers)
        for position, name in enumerate(layer.tops)
        if (place, position) not in read and not is_source(layer.type) and not _judges(layer)
    )


def _judges(layer: Layer) -> bool:
    return layer.type != "Silence" and (is_sink(layer.type) or layer.type in ANSWERS)


def _reason(layer: Layer, chosen: bool) -> str:
    if is_source(layer.type):
        return "brings in what is not needed"
    if is_sink(layer.type) or layer.type in ANSWERS:
        return "judges answers in training"
    return "leads to none of --outputs" if chosen else "leads to no output"
