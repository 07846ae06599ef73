"""Draft: a Graph while a pass works on it, with who makes and who reads each tensor at hand.

A rewrite is a function `rule(draft, node) -> bool`: it looks at one node and what stands before it, and either leaves
everything alone and returns False, or changes the draft and returns True. Nodes that lose their last reader vanish.
"""

from collections.abc import Callable, Iterator, Sequence
from types import MappingProxyType

import numpy as np

from perwatt.graph import Attribute, Graph, Node, Value, is_foreign, make

SWEEPS = 10_000  # more than any network needs; a rule that undoes another's work would sweep for ever


class Draft:
    """A Graph that can be changed: every method that changes it keeps the nodes in an order in which they can run."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.outputs = frozenset(graph.outputs)
        self._constants = dict(graph.constants)
        self._values = dict(graph.values)
        self._slots: list[list[Node]] = []
        self._slot: dict[str, int] = {}
        self._producers: dict[str, Node] = {}
        self._readers: dict[str, dict[str, Node]] = {}
        for node in graph.nodes:
            self._slots.append([])
            self._insert(node, len(self._slots) - 1, 0)

    def nodes(self) -> Iterator[Node]:
        """Yield the nodes in order, without those that vanish or are replaced before their turn."""
        for slot in self._slots:
            for node in list(slot):
                if self.alive(node):
                    yield node

    def alive(self, node: Node) -> bool:
        """Return whether this very node still stands in the draft."""
        return any(node is other for other in self._slots[self._slot[node.name]])

    def producer(self, name: str, *operators: str) -> Node | None:
        """Return the node that makes a tensor, if it is one of `operators` (any, when none is named)."""
        node = self._producers.get(name)
        if node is None or (operators and (node.operator not in operators or is_foreign(node))):
            return None
        return node

    def readers(self, name: str) -> tuple[Node, ...]:
        """Return the nodes that read a tensor, in order."""
        return tuple(sorted(self._readers.get(name, {}).values(), key=self._order))

    def sole(self, name: str) -> bool:
        """Return whether a tensor is read exactly once, and not handed to the caller."""
        readers = self._readers.get(name, {}).values()
        return name not in self.outputs and sum(node.inputs.count(name) for node in readers) == 1

    def constant(self, name: str) -> np.ndarray | None:
        """Return the array of a constant, None for any other tensor."""
        return self._constants.get(name)

    def value(self, name: str) -> Value:
        """Return what is known of a tensor."""
        return self._values[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._values[name].shape

    def follows(self, node: Node, other: Node) -> bool:
        """Return whether a node stands behind another."""
        return self._order(node) > self._order(other)

    def keep(self, name: str, array: np.ndarray) -> str:
        """Add a constant, under `name` or, when that is taken, one like it; returns its name."""
        name = self._fresh(name)
        kept = np.ascontiguousarray(array).reshape(array.shape).view()
        kept.flags.writeable = False
        self._constants[name] = kept
        self._values[name] = Value(name, kept.shape, kept.dtype)
        return name

    def before(self, node: Node, operator: str, inputs: Sequence[str], **attributes: Attribute) -> str:
        """Add a node with one output just before `node`, for `node`'s replacement to read; returns the output."""
        output = self._fresh(f"{node.name}/{operator.lower()}")
        self._add(operator, self._title(output), inputs, (output,), attributes, *self._order(node))
        return output

    def replace(self, node: Node, operator: str, inputs: Sequence[str], **attributes: Attribute) -> None:
        """Put another node in the place of `node`: it makes the same tensors."""
        self.join((node,), operator, inputs, **attributes)

    def join(self, nodes: Sequence[Node], operator: str, inputs: Sequence[str], **attributes: Attribute) -> None:
        """Put one node in the place of the first of `nodes`; it makes the tensors of all of them."""
        slot, place = self._order(nodes[0])
        for node in nodes:
            self._remove(node)
        outputs = tuple(name for node in nodes for name in node.outputs)
        self._add(operator, nodes[0].name, inputs, outputs, attributes, slot, place)
        for node in nodes:
            self._sweep(node.inputs)

    def can_forward(self, old: str, new: str) -> bool:
        """Return whether `forward` can do it."""
        if self.shape(old) != self.shape(new) or self.value(old).dtype != self.value(new).dtype:
            return False
        alone = old in self._producers and len(self._producers[old].outputs) == 1
        return old not in self.outputs or (new in self._producers and new not in self.outputs and alone)

    def forward(self, old: str, new: str) -> bool:
        """Let whoever reads `old` read the equal tensor `new`, made earlier.

        Returns False, and does nothing, where the names that the caller knows would change.
        """
        if not self.can_forward(old, new):
            return False
        maker = self._producers.get(old)
        if maker is None:  # it vanished when the last of its other outputs was forwarded
            return True
        if old in self.outputs:  # the caller wants this name, so the other tensor takes it on
            self._remove(maker)
            renamed = self._producers[new]
            self._swap(
                renamed,
                Node(
                    renamed.operator,
                    renamed.name,
                    renamed.inputs,
                    tuple(old if name == new else name for name in renamed.outputs),
                    renamed.attributes,
                ),
            )
            old, new = new, old
        for node in self.readers(old):
            inputs = tuple(new if name == old else name for name in node.inputs)
            self._swap(node, Node(node.operator, node.name, inputs, node.outputs, node.attributes))
        self._sweep((*maker.inputs, *maker.outputs))
        return True

    def reread(self, node: Node, position: int, name: str) -> None:
        """Let one node read another tensor at one input."""
        inputs = tuple(name if place == position else old for place, old in enumerate(node.inputs))
        self._swap(node, Node(node.operator, node.name, inputs, node.outputs, node.attributes))
        self._sweep((node.inputs[position],))

    def remove_unread(self) -> None:
        """Remove every node whose outputs nobody reads."""
        for node in reversed(list(self.nodes())):
            if self.alive(node):
                self._sweep(node.outputs)

    def graph(self) -> Graph:
        """Return the Graph as it stands, without constants that nobody reads."""
        nodes = tuple(self.nodes())
        read = {name for node in nodes for name in node.inputs if name} | self.outputs
        constants = {name: array for name, array in self._constants.items() if name in read}
        made = {name for node in nodes for name in node.outputs if name}
        known = made | set(constants) | set(self._graph.inputs)
        values = {name: value for name, value in self._values.items() if name in known}
        frozen = MappingProxyType(constants), MappingProxyType(values)
        return Graph(self._graph.name, self._graph.inputs, self._graph.outputs, nodes, *frozen)

    def _order(self, node: Node) -> tuple[int, int]:
        slot = self._slot[node.name]
        return slot, next(place for place, other in enumerate(self._slots[slot]) if other.name == node.name)

    def _add(
        self,
        operator: str,
        title: str,
        inputs: Sequence[str],
        outputs: tuple[str, ...],
        attributes: dict[str, Attribute],
        slot: int,
        place: int,
    ) -> None:
        known = [self._values[name] if name else None for name in inputs]
        node, values = make(operator, title, inputs, outputs, attributes, known)
        for value in values:
            old = self._values.setdefault(value.name, value)
            assert (old.shape, old.dtype) == (value.shape, value.dtype), f"{operator} {title}: {value}, was {old}"
        self._insert(node, slot, place)

    def _insert(self, node: Node, slot: int, place: int) -> None:
        self._slots[slot].insert(place, node)
        self._slot[node.name] = slot
        self._index(node)

    def _index(self, node: Node) -> None:
        for name in node.outputs:
            if name:
                self._producers[name] = node
        for name in node.inputs:
            self._readers.setdefault(name, {})[node.name] = node

    def _remove(self, node: Node) -> None:
        slot, place = self._order(node)
        del self._slots[slot][place]
        for name in node.outputs:
            self._producers.pop(name, None)
        for name in set(node.inputs):
            del self._readers[name][node.name]

    def _swap(self, old: Node, new: Node) -> None:
        """Exchange a node for one of the same name that reads or makes other tensors."""
        for name in old.outputs:
            self._producers.pop(name, None)
        for name in set(old.inputs):
            del self._readers[name][old.name]
        slot, place = self._order(old)
        self._slots[slot][place] = new
        self._index(new)

    def _sweep(self, names: Sequence[str]) -> None:
        """Remove the producers of these tensors if nobody reads anything they make, and then what those read."""
        waiting = list(names)
        while waiting:
            node = self._producers.get(waiting.pop())
            if node and not any(self._readers.get(name) or name in self.outputs for name in node.outputs):
                self._remove(node)
                waiting.extend(node.inputs)

    def _fresh(self, name: str) -> str:
        stem, mark, count = name.rpartition("~")
        if not mark or not count.isdigit():
            stem, count = name, "1"
        number = int(count)
        while name in self._values:
            number += 1
            name = f"{stem}~{number}"
        return name

    def _title(self, name: str) -> str:
        while name in self._slot:
            name += "~"
        return name


Rule = Callable[[Draft, Node], bool]


def rewrite(graph: Graph, *rules: Rule) -> Graph:
    """Return the Graph after applying each rule wherever it fits, until none fits any more.

    The very same Graph comes back when none did.
    """
    draft = Draft(graph)
    for sweep in range(SWEEPS):
        changed = False
        for node in draft.nodes():
            changed |= not is_foreign(node) and any(rule(draft, node) for rule in rules)
        if not changed:
            return draft.graph() if sweep else graph
    raise AssertionError(f"rules that undo each other: {[rule.__name__ for rule in rules]}")
