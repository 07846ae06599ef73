"""A Graph written with a free batch runs at any batch, and one that fixes its batch is refused."""

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perwatt.errors import NetworkError
from perwatt.graph import Builder, Graph, read, write
from perwatt.networks import build


def shuffled(batch: int) -> Graph:
    """A channel shuffle: Reshape, Transpose, Reshape, whose targets hold the batch."""
    builder = Builder("shuffle")
    data = builder.input("data", (batch, 6, 4, 5))
    split = builder.add("Reshape", [data], shape=(batch, 2, 3, 4, 5))
    turned = builder.add("Transpose", [split], perm=(0, 2, 1, 3, 4))
    return builder.finish([builder.add("Reshape", [turned], shape=(batch, 6, 4, 5))])


@settings(deadline=None, max_examples=15)
@given(made=st.integers(1, 4), fed=st.integers(1, 7))
def test_a_file_with_a_free_batch_runs_at_any(made: int, fed: int) -> None:
    images = np.random.default_rng(fed).standard_normal((fed, 6, 4, 5), dtype=np.float32)
    content = write(shuffled(made), batch="batch")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    wanted = images.reshape(fed, 2, 3, 4, 5).swapaxes(1, 2).reshape(fed, 6, 4, 5)
    assert session.get_inputs()[0].shape == ["batch", 6, 4, 5]
    np.testing.assert_array_equal(session.run(None, {"data": images})[0], wanted)
    assert str(read(content, batch=made)) == str(shuffled(made))


def test_a_network_is_read_again_at_another_batch() -> None:
    content = write(build("lenet", 3), batch="images")
    assert str(read(content, batch=5)) == str(build("lenet", 5))


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("Slice", {"starts": (0,), "ends": (1,), "axes": (0,), "steps": (1,)}),
        ("Reshape", {"shape": (6, 2, 4, 5)}),
        ("Split", {"axis": 0, "split": (1, 1)}),
    ],
)
def test_a_node_that_fixes_the_batch_is_refused(operator: str, attributes: dict[str, object]) -> None:
    builder = Builder("fixed")
    data = builder.input("data", (2, 6, 4, 5))
    made = builder.add(operator, [data], name="fixing", outputs=2 if operator == "Split" else 1, **attributes)
    last = made if isinstance(made, str) else made[0]
    back = builder.add("Reshape", [last], shape=(2, -1)) if operator == "Slice" else last
    graph = builder.finish([back])
    with pytest.raises(NetworkError, match=f"{operator} 'fixing', which fixes it|batch first"):
        write(graph, batch="batch")
