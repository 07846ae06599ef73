"""How much of a step's rounding error reaches the answers: against drawn values, and along the ways of networks."""

from collections.abc import Sequence

import numpy as np
import pytest
from plan_cases import place_net
from small_graphs import NETS, Net, residuals

from perwatt.plan.rounding import error_shares, largest_of


@pytest.mark.parametrize("values", [1, 2, 4, 9, 25])
def test_the_largest_of_drawn_values_has_the_error_that_is_computed(values: int) -> None:
    random = np.random.default_rng(values)
    x = random.standard_normal((400_000, values))
    error = np.where(x > 0, random.standard_normal(x.shape), 0)  # a ReLU lets no error pass where it is zero
    x = np.maximum(x, 0)
    before = np.sqrt((error**2).sum() / (x**2).sum())
    largest = x.argmax(axis=1)[:, np.newaxis]
    kept = np.take_along_axis(error, largest, 1), np.take_along_axis(x, largest, 1)
    after = np.sqrt((kept[0] ** 2).sum() / (kept[1] ** 2).sum())
    assert largest_of(values) == pytest.approx(after / before, rel=0.01)


def pooled(net: Net) -> Sequence[str]:
    """Three convolutions, a pool behind each of the first two, and a way past the second."""
    x = net.add("Relu", net.conv(net.input(16, 16, 16), 16, 3))
    x = net.add("MaxPool", x, kernel_shape=(2, 2), strides=(2, 2))
    y = net.add("Relu", net.conv(x, 16, 3))
    y = net.add("MaxPool", y, kernel_shape=(3, 3), strides=(1, 1), pads=(1, 1, 1, 1))
    return [net.dense(net.add("Concat", net.conv(y, 16), net.conv(x, 32), axis=1), 10)]


def test_every_pool_on_the_way_takes_its_part_and_the_widest_way_counts() -> None:
    placement = place_net(pooled, 1)
    shares = error_shares(placement)
    steps = zip(placement.steps, shares, strict=True)
    first, second, *rest = [share for step, share in steps if step.operator in ("FusedConv", "FusedGemm")]
    assert first == pytest.approx(largest_of(4))  # by the way past the second pool
    assert second == pytest.approx(largest_of(9))
    assert rest == [1.0] * len(rest)
    assert len(rest) >= 2


def test_without_pools_all_of_it_arrives() -> None:
    placement = place_net(residuals, 2)
    assert error_shares(placement) == [1.0] * len(placement.steps)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("batch", [1, 8])
def test_no_step_that_is_read_is_left_out(net: object, batch: int) -> None:
    placement = place_net(net, batch)  # type: ignore[arg-type]
    shares = error_shares(placement)
    assert len(shares) == len(placement.steps)
    assert all(0 < share <= 1 for share in shares)


def test_an_answer_that_others_read_counts_in_full() -> None:
    def early(net: Net) -> Sequence[str]:
        x = net.add("Relu", net.conv(net.input(16, 8, 8), 16, 3))
        return [x, net.dense(net.add("MaxPool", x, kernel_shape=(2, 2), strides=(2, 2)), 10)]

    assert error_shares(place_net(early, 1))[0] == 1.0
