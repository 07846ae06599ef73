"""Builder: writes a Graph down node by node, with shapes inferred on the way."""

from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from perwatt.errors import InvalidGraph
from perwatt.graph.checker import check
from perwatt.graph.graph import Graph, Node, Value
from perwatt.graph.operators import make

SEED = 2015


class Builder:
    """A Graph in the making.

    `random` is a generator made from `seed`, for weights: the same calls in the same order give the same network.
    """

    def __init__(self, name: str, seed: int = SEED) -> None:
        self.name = name
        self.random = np.random.default_rng(seed)
        self._inputs: list[str] = []
        self._nodes: list[Node] = []
        self._constants: dict[str, np.ndarray] = {}
        self._values: dict[str, Value] = {}
        self._titles: set[str] = set()

    def input(self, name: str, shape: Sequence[int], dtype: DTypeLike = np.float32) -> str:
        """Declare a tensor that the caller feeds; returns its name. Raises InvalidGraph when the name is taken."""
        sizes = tuple(int(size) for size in shape)
        if any(size < 0 for size in sizes):
            raise InvalidGraph(f"input {name!r}: expected a static shape, got {sizes}; give every size")
        self._record(Value(name, sizes, np.dtype(dtype)))
        self._inputs.append(name)
        return name

    def constant(self, name: str, array: ArrayLike) -> str:
        """Keep an array, read-only, under a name; returns the name. Raises InvalidGraph when the name is taken."""
        kept = np.ascontiguousarray(array).reshape(np.shape(array)).view()
        kept.flags.writeable = False
        self._record(Value(name, kept.shape, kept.dtype))
        self._constants[name] = kept
        return name

    def add(
        self, operator: str, inputs: Sequence[str], *, name: str | None = None, outputs: int = 1, **attributes: object
    ) -> str | tuple[str, ...]:
        """Add a node and return the name of its output, or a tuple of names when `outputs` is more than 1.

        The first output bears the node's name, the others that name with :1, :2, ... behind it; a name that is not
        given is made up. An empty string among `inputs` leaves an optional one out. Raises InvalidGraph when the
        operator's rule is broken.
        """
        if name is None:
            name = next(
                made
                for made in (f"{operator.lower()}_{count}" for count in range(len(self._nodes), 2**31))
                if made not in self._titles and made not in self._values
            )
        for tensor in inputs:
            if tensor and tensor not in self._values:
                raise InvalidGraph(f"node {name!r}: expected inputs that exist, got {tensor!r}; add it first")
        made = (name, *(f"{name}:{position}" for position in range(1, outputs)))
        known = [self._values[tensor] if tensor else None for tensor in inputs]
        node, values = make(operator, name, inputs, made, attributes, known)
        if name in self._titles:
            raise InvalidGraph(f"node {name!r}: expected a new name, got one that is taken; choose another")
        for value in values:
            self._record(value)
        self._titles.add(name)
        self._nodes.append(node)
        return made[0] if outputs == 1 else made

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor made so far."""
        return self._values[name].shape

    def finish(self, outputs: Sequence[str]) -> Graph:
        """Return the Graph with these outputs; raises InvalidGraph when something is missing."""
        graph = Graph(
            self.name,
            tuple(self._inputs),
            tuple(outputs),
            tuple(self._nodes),
            MappingProxyType(dict(self._constants)),
            MappingProxyType(dict(self._values)),
        )
        check(graph)
        return graph

    def _record(self, value: Value) -> None:
        if not value.name or value.name in self._values:
            raise InvalidGraph(f"tensor {value.name!r}: expected a new name, got one that is taken; choose another")
        self._values[value.name] = value
