"""Whose turn it is: engines alternate in short blocks, in an order that is drawn by seed and then mirrored (ABBA)."""

import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def rounds(items: Sequence[Item], seed: int) -> Iterator[tuple[Item, ...]]:
    """Yield one round after the other without end; in a round each item has one turn.

    Every even round is a seeded shuffle, the round after it the same order reversed: over the two, each pair of items
    stands at the same mean position, so that a drift that is linear in time cancels.
    """
    generator = random.Random(seed)
    while True:
        order = list(items)
        generator.shuffle(order)
        yield tuple(order)
        yield tuple(reversed(order))
