"""The fixture of the passes' tests."""

from collections.abc import Callable

import numpy as np
import pytest
from small_nets import Net, Write, compare

from perwatt.graph import Graph


@pytest.fixture
def rewritten() -> Callable[..., list[str]]:
    """Return a function: write a net, rewrite it, compare, and return the operators that are left, in order."""

    def check_rewrite(write_net: Write, *rewrites: Callable[[Graph], Graph], rounded: type | None = None) -> list[str]:
        left: list[list[str]] = []
        for dtype in (np.float64, np.float32):
            net = Net(dtype)
            made = write_net(net)
            before = net.graph(*([made] if isinstance(made, str) else made))
            after = before
            for rewrite in rewrites:
                after = rewrite(after)
                assert rewrite(after) is after, f"{rewrite.__name__} changes its own result"
            compare(before, after, rounded=rounded)
            left.append([node.operator for node in after.nodes])
        assert left[0] == left[1]
        return left[0]

    return check_rewrite
