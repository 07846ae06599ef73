"""Fine-tuning keeps every weight but the last layer's, whatever network the package holds."""

import numpy as np
import pytest
import torch

from perwatt.errors import InputError, NetworkError
from perwatt.graph import Builder, Graph, write
from perwatt.networks import build
from perwatt.package import Package, Preprocessing
from perwatt.train.fine_tune import fine_tuned
from perwatt.train.module import training_form

HOW = Preprocessing(
    size=(28, 28), resize_to=28, interpolation="bilinear", channel_order="grey", mean=(0.0,), scale=(1.0,)
)
NAMES = tuple("abcdefghij")


def package(graph: Graph, labels: tuple[str, ...] | None = None) -> Package:
    return Package("some", "1", write(graph, batch="batch"), HOW, labels=labels)


def conv_network(kind: str) -> Graph:
    """Networks whose logits come from different last layers: behind a pool, a MatMul with its own bias, a Reshape."""
    builder = Builder(kind)
    random = np.random.default_rng(3)
    data = builder.input("data", (1, 3, 12, 12))

    def constant(name: str, *shape: int) -> str:
        return builder.constant(name, random.standard_normal(shape).astype(np.float32))

    x = builder.add("Conv", [data, constant("first", 8, 3, 3, 3)], name="first_conv", kernel_shape=(3, 3))
    if kind == "pooled":
        x = builder.add("Conv", [x, constant("w", 5, 8, 1, 1), constant("b", 5)], name="conv", kernel_shape=(1, 1))
        x = builder.add("Relu", [x], name="relu")
        x = builder.add("GlobalAveragePool", [x], name="pool")
        x = builder.add("Reshape", [x], name="shape", shape=(1, 5))
    else:
        x = builder.add("GlobalMaxPool", [x], name="pool")
        x = builder.add("Flatten", [x], name="flat")
        x = builder.add("MatMul", [x, constant("w", 8, 5)], name="product")
        x = builder.add("Add", [x, constant("b", 5)], name="sum")
    return builder.finish([builder.add("Softmax", [x], name="prob", axis=1)])


@pytest.mark.parametrize("kind", ["pooled", "product"])
def test_only_the_last_layer_is_drawn_anew(kind: str) -> None:
    before = conv_network(kind)
    after = fine_tuned(package(before), NAMES[:9], seed=1)
    assert after.values["prob"].shape == (1, 9)
    changed = {name for name in before.constants if not np.array_equal(before.constants[name], after.constants[name])}
    assert changed == {"w", "b"}
    assert not after.constants["b"].any()
    assert training_form(after)(torch.zeros(3, 3, 12, 12)).shape == (3, 9)


def test_the_same_classes_keep_every_weight_and_the_draw_depends_on_the_seed() -> None:
    lenet = build("lenet")
    kept = fine_tuned(package(lenet), NAMES, seed=1)
    assert all(np.array_equal(kept.constants[name], array) for name, array in lenet.constants.items())
    first, again, other = (fine_tuned(package(lenet), NAMES[:4], seed).constants["logits.weight"] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_another_size_needs_a_network_that_takes_it() -> None:
    assert fine_tuned(package(conv_network("pooled")), NAMES[:5], 1, size=20).values["data"].shape == (1, 3, 20, 20)
    with pytest.raises(InputError, match="expected 28, for which lenet was made"):
        fine_tuned(package(build("lenet")), NAMES, 1, size=40)


def test_a_network_without_a_last_layer_is_refused() -> None:
    builder = Builder("nothing")
    data = builder.input("data", (1, 5, 4, 4))
    pooled = builder.add("GlobalAveragePool", [data], name="pool")
    graph = builder.finish([builder.add("Flatten", [pooled], name="flat")])
    with pytest.raises(NetworkError, match="fully connected layer"):
        fine_tuned(package(graph), NAMES[:3], 1)


@pytest.mark.parametrize("kind", ["pooled", "product", "lenet"])
def test_the_same_classes_in_another_order_are_put_in_order(kind: str) -> None:
    before = build("lenet") if kind == "lenet" else conv_network(kind)
    shape = before.values[before.inputs[0]].shape
    names = NAMES[: before.values["prob"].shape[1]]
    images = torch.from_numpy(np.random.default_rng(1).standard_normal((3, *shape[1:])).astype(np.float32))
    turned = names[2:] + names[:2]
    after = fine_tuned(package(before, names), turned, seed=1)
    answers, own = training_form(after).answer(images), training_form(before).answer(images)
    torch.testing.assert_close(answers, own[:, [names.index(name) for name in turned]])
    assert fine_tuned(package(before, names), names, seed=1).constants.keys() == before.constants.keys()


def test_as_many_but_other_classes_are_drawn_anew() -> None:
    lenet = build("lenet")
    after = fine_tuned(package(lenet, NAMES), tuple("0123456789"), seed=1)
    changed = {name for name in lenet.constants if not np.array_equal(lenet.constants[name], after.constants[name])}
    assert changed == {"logits.weight", "logits.bias"}
