"""The training form answers as the deployed Graph does, for every built-in network, and nothing is lost on the way."""

import copy
from collections.abc import Mapping

import numpy as np
import onnxruntime
import pytest
import torch

from perwatt.errors import NetworkError
from perwatt.graph import Builder, Graph, write
from perwatt.networks import NETWORKS, build
from perwatt.train.module import deployed, initialise, main_graph, training_form

# Their fully connected layers have 60 to 120 million weights for photographs of 227, 17 to 20 million for these.
SMALLER = {"alexnet": 67, "caffenet": 67, "vgg16": 40, "resnet50": 64}
ALL = [pytest.param(name, marks=pytest.mark.slow if name != "lenet" else ()) for name in NETWORKS]


def inputs(graph: Graph, count: int, seed: int = 0) -> np.ndarray:
    """Return pictures with structures of several sizes: noise alone has none that pools could tell."""
    random = np.random.default_rng(seed)
    _, channels, height, width = graph.values[graph.inputs[0]].shape
    coarse = random.standard_normal((count, channels, -(-height // 8), -(-width // 8)))
    smooth = np.kron(coarse, np.ones((1, 1, 8, 8)))[..., :height, :width]
    fine = random.standard_normal((count, channels, height, width))
    return ((smooth + 0.3 * fine) * 60.0 * NETWORKS[graph.name].scale[0]).astype(np.float32)


def ran(graph: Graph, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(write(graph, batch="batch"), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {graph.inputs[0]: images})[0]
    return found


def hold(form: np.ndarray, answer: np.ndarray) -> None:
    """Two float32 paths of at most 60 layers, sums of at most 9216 products: errors of the logits below 1e-4 of their
    spread (lab/truth.py), which is below 10 here; a probability errs by as much of itself.
    """
    assert np.abs(form - answer).max() <= 1e-3 * answer.max()
    assert np.array_equal(form.argmax(1), answer.argmax(1))


@pytest.mark.parametrize("name", ALL)
def test_the_training_form_equals_the_deployed_form(name: str) -> None:
    module = training_form(build(name, 1, size=SMALLER.get(name))).eval()
    images = inputs(module.graph, 3)
    with torch.no_grad():
        logits = module(torch.from_numpy(images))
    form = torch.softmax(logits.double(), 1).numpy()
    hold(form, ran(deployed(module), images))
    hold(form, module.answer(torch.from_numpy(images)).double().numpy())


@pytest.mark.parametrize("name", ["lenet", pytest.param("squeezenet1.1", marks=pytest.mark.slow)])
def test_they_are_equal_after_steps_of_training_at_another_size_and_number_of_classes(name: str) -> None:
    size = NETWORKS[name].least_size + 6
    module = training_form(build(name, 1, classes=7, size=size))
    initialise(module, name, seed=3)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    optimizer = torch.optim.SGD(module.parameters(), 1e-3)
    module.train()
    images = torch.from_numpy(inputs(module.graph, 6))
    for _ in range(2):
        torch.nn.functional.cross_entropy(module(images), torch.arange(6)).backward()
        optimizer.step()
    graph = deployed(module)
    assert all(not torch.equal(before[key], module.constant(key)) for key in before if key.endswith("weight"))
    assert graph.values["prob"].shape == (1, 7)
    module.eval()
    hold(torch.softmax(module(images), 1).detach().double().numpy(), ran(graph, images.numpy()))


def normalised() -> Graph:
    builder = Builder("normalised")
    random = np.random.default_rng(5)
    data = builder.input("data", (1, 3, 8, 8))
    weights = builder.constant("filters.weight", random.standard_normal((4, 3, 3, 3)).astype(np.float32))
    x = builder.add("Conv", [data, weights], name="conv", kernel_shape=(3, 3))
    keys = ("weight", "bias", "running_mean", "running_var")
    names = [builder.constant(f"bn.{key}", random.uniform(0.5, 1.5, 4).astype(np.float32)) for key in keys]
    x = builder.add("BatchNormalization", [x, *names], name="bn", epsilon=1e-3)
    x = builder.add("GlobalAveragePool", [builder.add("Relu", [x], name="relu")], name="pool")
    return builder.finish([builder.add("Flatten", [x], name="flat")])


def test_batch_normalisation_learns_from_the_batch_and_deploys_its_running_statistics() -> None:
    module = training_form(normalised())
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32))
    maps = torch.nn.functional.conv2d(images, module.constant("filters.weight")).double()
    mean, variance = maps.mean((0, 2, 3)), maps.var((0, 2, 3), correction=1)
    kept_mean, kept_variance = module.constant("bn.running_mean").clone(), module.constant("bn.running_var").clone()
    trained = module.train()(images)
    scale, shift = module.constant("bn.weight").double(), module.constant("bn.bias").double()
    moments = [part[None, :, None, None] for part in (mean, maps.var((0, 2, 3), correction=0), scale, shift)]
    wanted = ((maps - moments[0]) / (moments[1] + 1e-3).sqrt() * moments[2] + moments[3]).relu().mean((2, 3))
    torch.testing.assert_close(trained.double(), wanted, rtol=1e-5, atol=1e-6)
    graph = deployed(module)
    for key, before, now in (("running_mean", kept_mean, mean), ("running_var", kept_variance, variance)):
        expected = (0.9 * before.double() + 0.1 * now).detach().numpy()
        np.testing.assert_allclose(graph.constants[f"bn.{key}"], expected, rtol=1e-5)
        assert np.array_equal(graph.constants[f"bn.{key}"], module.constant(f"bn.{key}").numpy())
    np.testing.assert_allclose(module.eval()(images).detach().numpy(), ran(graph, images.numpy()), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_googlenet_hears_its_auxiliary_classifiers_in_training_and_deploys_without_them() -> None:
    plain, graph = build("googlenet", classes=5, size=64), build("googlenet", classes=5, size=64, auxiliary=True)
    module = training_form(graph)
    images = torch.from_numpy(inputs(graph, 2))
    answers = module.train()(images)
    assert [answer.shape for answer in answers] == [(2, 5)] * 3
    assert module.eval()(images).shape == (2, 5)
    sum(answer.sum() for answer in module.train()(images)).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert str(deployed(module)) == str(main_graph(graph)) == str(plain)
    assert set(deployed(module).constants) == set(plain.constants)
    hold(torch.softmax(module.eval()(images), 1).detach().double().numpy(), ran(deployed(module), images.numpy()))


def test_dropout_leaves_out_the_papers_share_in_training_only() -> None:
    builder = Builder("googlenet")
    data = builder.input("data", (1, 1, 100, 100))
    module = training_form(builder.finish([builder.add("Dropout", [data], name="pool5/drop")]))
    ones = torch.ones(1, 1, 100, 100)
    torch.manual_seed(0)
    kept = module.train()(ones)
    # 10,000 draws of a share of 0.6: four standard deviations are 0.02.
    assert abs(float((kept > 0).float().mean()) - 0.6) < 0.02
    assert torch.equal(kept[kept > 0], torch.full_like(kept[kept > 0], 1 / 0.6))
    assert torch.equal(module.eval()(ones), ones.flatten(1))


def test_a_copy_has_tensors_of_its_own() -> None:
    module = training_form(build("lenet")).train()
    module.constant("conv1.weight").requires_grad_(False)
    copied = copy.deepcopy(module)
    with torch.no_grad():
        module.constant("conv1.weight").zero_()
    assert copied.constant("conv1.weight").abs().sum() > 0
    assert copied.training
    assert not copied.constant("conv1.weight").requires_grad
    assert list(copied.state_dict()) == list(module.state_dict()) == list(module.graph.constants)


@pytest.mark.parametrize("name", ["forward", "a..b", "conv", "conv.weight.more", "training.weight", "_modules"])
def test_constants_of_any_name_learn(name: str) -> None:
    builder = Builder("names")
    data = builder.input("data", (1, 2, 3, 3))
    first = builder.constant("conv.weight", np.ones((2, 2, 1, 1), np.float32))
    other = builder.constant(name, np.ones((2, 2, 1, 1), np.float32))
    x = builder.add("Conv", [data, first], name="one", kernel_shape=(1, 1))
    module = training_form(builder.finish([builder.add("Conv", [x, other], name="two", kernel_shape=(1, 1))]))
    assert len(list(module.parameters())) == 2
    with torch.no_grad():
        module.constant(name).fill_(3.0)
    assert deployed(module).constants[name].max() == 3.0
    again = training_form(module.graph)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again.constant(name), module.constant(name))


def test_another_network_is_not_deployed_in_its_place() -> None:
    with pytest.raises(NetworkError, match="which it lacks"):
        deployed(training_form(build("lenet")), normalised())
    with pytest.raises(NetworkError, match="of shape"):
        deployed(training_form(build("lenet")), build("lenet", classes=3))


def expected_moments(name: str) -> Mapping[str, tuple[float, float]]:
    """Return standard deviation and bias of some layers, from the papers' own words (training.py names the places)."""
    return {
        "alexnet": {"conv1": (0.01, 0.0), "conv2": (0.01, 1.0), "fc6": (0.01, 1.0), "logits": (0.01, 0.0)},
        "caffenet": {"conv1": (0.01, 0.0), "conv4": (0.01, 1.0), "fc7": (0.005, 1.0), "logits": (0.01, 0.0)},
        "googlenet": {"inception_4c/3x3": (1 / (9 * 128) ** 0.5, 0.2), "logits": (1 / 1024**0.5, 0.0)},
        "squeezenet1.1": {"conv10": (0.01, 0.0), "fire9/expand3x3": (1 / (9 * 64) ** 0.5, 0.0)},
        "vgg16": {"conv3_2": ((2 / (9 * 512)) ** 0.5, 0.0), "fc7": ((2 / 8192) ** 0.5, 0.0)},
        "resnet50": {"conv3_2/b": ((2 / (9 * 128)) ** 0.5, 0.0), "logits": ((1 / 2048) ** 0.5, 0.0)},
        "lenet": {"conv2": (1 / (25 * 20) ** 0.5, 0.0), "ip1": (1 / 800**0.5, 0.0)},
        "efficientnet-lite0": {"_conv_head": ((2 / 1280) ** 0.5, 0.0), "_blocks.4._depthwise_conv": (0.2828, 0.0)},
    }[name]


@pytest.mark.parametrize("name", ALL)
def test_training_starts_from_the_papers_weights(name: str) -> None:
    module = training_form(build(name, size=SMALLER.get(name), classes=10 if name == "lenet" else 100))
    initialise(module, name, seed=1)
    first = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    for layer, (deviation, bias) in expected_moments(name).items():
        weights = first[f"{layer}.weight"]
        # The standard error of a deviation is 1 / sqrt(2 n) of it; five of them, n at least 2,000.
        assert abs(float(weights.std()) / deviation - 1) < 5 / (2 * weights.numel()) ** 0.5, layer
        if f"{layer}.bias" in first:
            assert torch.equal(first[f"{layer}.bias"], torch.full_like(first[f"{layer}.bias"], bias)), layer
    for key, tensor in first.items():
        if "running" in key:
            assert torch.equal(tensor, torch.full_like(tensor, float(key.endswith("var")))), key
    initialise(module, name, seed=1)
    assert all(torch.equal(first[key], tensor) for key, tensor in module.state_dict().items())
    if name == "lenet":
        initialise(module, name, seed=2)
        assert not torch.equal(first["conv1.weight"], module.constant("conv1.weight"))
