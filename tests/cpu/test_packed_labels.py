"""Tuning shares packed arrays between all candidates of a step by their labels: one label, one content."""

import numpy as np
import pytest
from convolution_cases import Case, problem

from perwatt.cpu.catalogue import KERNELS
from perwatt.plan.algorithm import Packed

CASES = [
    Case(32, 64, (14, 14), lanes=16, threads=2, images=2, residual=True),
    Case(32, 40, (14, 14), (5, 5), (2, 2, 2, 2), lanes=16, threads=2),
    Case(3, 32, (23, 23), (7, 7), (3, 3, 3, 3), (2, 2), layout="plain", lanes=16, threads=2),
    Case(32, 32, (9, 9), groups=32, lanes=16),
    Case(32, 32, (9, 9), groups=4, lanes=16),
    Case(64, 64, (8, 8), groups=2, lanes=8, images=4),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_label_one_content(case: Case) -> None:
    s = problem(case).step
    contents: dict[str, tuple[str, np.ndarray]] = {}
    for algorithm in KERNELS:
        if s.operator not in algorithm.operators or algorithm.accepts(s) is not None:
            continue
        for tile in algorithm.tiles(s):
            # A block that makes the transforms' tables as far apart as the planes of direct convolution's are.
            blocks = [tile, {**tile, "block": 16 * 16}, {**tile, "block": 14 * 14}] if "block" in tile else [tile]
            for wanted in blocks:
                for call in algorithm.calls(s, wanted):
                    for word in call.words:
                        if isinstance(word, Packed):
                            made = np.asarray(word.make())
                            first, before = contents.setdefault(word.label, (algorithm.name, made))
                            assert np.array_equal(before, made), f"{word.label!r} of {first} and of {algorithm.name}"
    assert contents
