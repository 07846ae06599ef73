"""Examination: what there is to know of a labelled data set before anybody learns from it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from perwatt.data.dataset import DataSet
from perwatt.data.look import Progress, Seen, look
from perwatt.errors import DataError

# How many broken files or duplicates a message names before it only counts.
NAMED_IN_MESSAGES = 5


@dataclass(frozen=True)
class Sizes:
    """The sides of a split's pictures in pixels: smallest, median, largest, and how many sizes there are."""

    width: tuple[int, int, int]
    height: tuple[int, int, int]
    different: int


@dataclass(frozen=True)
class Duplicate:
    """The same pixels more than once: `members` are (split, place, class), at least two."""

    members: tuple[tuple[str, int, str], ...]

    @property
    def splits(self) -> frozenset[str]:
        """The splits that the members lie in."""
        return frozenset(split for split, _, _ in self.members)

    @property
    def classes(self) -> frozenset[str]:
        """The classes that the members are said to be of."""
        return frozenset(name for _, _, name in self.members)


@dataclass(frozen=True)
class Examination:
    """What was found.

    `counts` are pictures per class and split; `broken` says why each broken picture (split, place) is so.
    """

    data: DataSet
    counts: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, Sizes | None]
    broken: Mapping[tuple[str, int], str]
    duplicates: tuple[Duplicate, ...]

    @property
    def across(self) -> tuple[Duplicate, ...]:
        """Duplicates that lie in more than one split: what was learned is then asked again."""
        return tuple(each for each in self.duplicates if len(each.splits) > 1)

    @property
    def contradicting(self) -> tuple[Duplicate, ...]:
        """Duplicates with more than one class."""
        return tuple(each for each in self.duplicates if len(each.classes) > 1)

    @property
    def faults(self) -> tuple[str, ...]:
        """What should be mended before training, a line each; empty for a good data set."""
        lines = []
        if self.broken:
            lines.append(f"{len(self.broken)} broken pictures")
        if self.across:
            lines.append(f"{len(self.across)} pictures stand in more than one split")
        if self.contradicting:
            lines.append(f"{len(self.contradicting)} pictures stand in more than one class")
        for split, counts in self.counts.items():
            empty = [name for name, count in zip(self.data.classes, counts, strict=True) if count == 0]
            if empty:
                lines.append(f"{split}: no picture of {some(empty)}")
            single = [name for name, count in zip(self.data.classes, counts, strict=True) if count == 1]
            if single and split == "train":
                lines.append(f"{split}: one picture only of {some(single)}")
        return tuple(lines)


def examine(data: DataSet, progress: Progress | None = None) -> Examination:
    """Return what a data set holds; decodes every picture that was not seen before."""
    return examination(data, look(data, progress))


def examination(data: DataSet, seen: Mapping[str, Sequence[Seen]]) -> Examination:
    """Return what follows from what was seen of each picture."""
    counts = {
        name: tuple(int(count) for count in np.bincount(split.labels, minlength=len(data.classes)))
        for name, split in data.splits.items()
    }
    broken = {
        (name, place): each.fault for name in seen for place, each in enumerate(seen[name]) if each.fault is not None
    }
    same: dict[str, list[tuple[str, int, str]]] = defaultdict(list)
    for name, pictures in seen.items():
        labels = data.splits[name].labels
        for place, each in enumerate(pictures):
            if each.fault is None:
                same[each.digest].append((name, place, data.classes[labels[place]]))
    duplicates = tuple(Duplicate(tuple(members)) for members in same.values() if len(members) > 1)
    return Examination(data, counts, {name: _sizes(seen[name]) for name in seen}, broken, duplicates)


def without_broken(data: DataSet, seen: Mapping[str, Sequence[Seen]]) -> DataSet:
    """Return the data set without the pictures that cannot be decoded."""
    splits = {}
    for name, split in data.splits.items():
        whole = np.array([place for place, each in enumerate(seen[name]) if each.fault is None], dtype=np.int64)
        splits[name] = split if len(whole) == len(split) else split.subset(whole)
    return DataSet(data.name, data.form, data.source, data.classes, splits)


def require_whole(data: DataSet, seen: Mapping[str, Sequence[Seen]]) -> None:
    """Raise DataError with the first broken pictures when there is one."""
    faults = [each.fault for name in data.splits for each in seen[name] if each.fault is not None]
    if faults:
        more = f"; and {len(faults) - NAMED_IN_MESSAGES} more" if len(faults) > NAMED_IN_MESSAGES else ""
        raise DataError(
            f"{data.source}: expected pictures that can be decoded, got {len(faults)} broken: "
            f"{'; '.join(faults[:NAMED_IN_MESSAGES])}{more}; mend them or leave them out with --skip-broken"
        )


def some(names: Sequence[str]) -> str:
    """Return the first names and how many more there are."""
    more = f" and {len(names) - NAMED_IN_MESSAGES} more" if len(names) > NAMED_IN_MESSAGES else ""
    return ", ".join(map(repr, names[:NAMED_IN_MESSAGES])) + more


def _sizes(seen: Sequence[Seen]) -> Sizes | None:
    whole = np.array([(each.width, each.height) for each in seen if each.fault is None])
    if not len(whole):
        return None
    width, height = ((int(side.min()), int(np.median(side)), int(side.max())) for side in whole.T)
    return Sizes(width, height, len(np.unique(whole, axis=0)))
