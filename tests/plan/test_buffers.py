"""Buffers alive at once never overlap, whatever their sizes and lives, and dead ones give their memory away."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from perwatt.plan.buffers import ALIGNMENT_FLOATS, SLACK_FLOATS, Lifetime, arrange

lifetimes = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=4),
    st.builds(
        lambda size, first, length: Lifetime(size, first, first + length),
        st.integers(0, 5000), st.integers(0, 12), st.integers(0, 6),
    ),
    max_size=20,
)  # fmt: skip


@settings(max_examples=200, deadline=None, derandomize=True)
@given(lifetimes)
def test_no_two_that_live_together_overlap(lives: dict[str, Lifetime]) -> None:
    offsets, total = arrange(lives)
    assert offsets.keys() == lives.keys()
    names = sorted(lives)
    for i, one in enumerate(names):
        a = lives[one]
        assert offsets[one] % ALIGNMENT_FLOATS == 0
        assert offsets[one] >= 0
        assert offsets[one] + a.size + SLACK_FLOATS <= total
        for other in names[i + 1 :]:
            b = lives[other]
            if a.first <= b.last and b.first <= a.last:
                before = offsets[one] + a.size + SLACK_FLOATS <= offsets[other]
                behind = offsets[other] + b.size + SLACK_FLOATS <= offsets[one]
                assert before or behind, (one, a, other, b)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(lifetimes)
def test_the_order_in_which_they_come_changes_nothing(lives: dict[str, Lifetime]) -> None:
    assert arrange(lives) == arrange(dict(reversed(lives.items())))


def test_a_chain_needs_no_more_than_its_two_largest_neighbours() -> None:
    sizes = [1000, 4000, 2000, 3000, 500, 4000, 100]
    lives = {f"b{i}": Lifetime(size, i, i + 1) for i, size in enumerate(sizes)}
    _, total = arrange(lives)
    pairs = [a + b for a, b in pairwise(sizes)]
    assert max(pairs) <= total <= max(pairs) + 2 * (SLACK_FLOATS + ALIGNMENT_FLOATS)


def test_nothing_needs_nothing() -> None:
    assert arrange({}) == ({}, 0)
