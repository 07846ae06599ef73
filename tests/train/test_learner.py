"""The four steps do what they are said to do: against the same arithmetic written out, and in double precision."""

import json
import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from perwatt.errors import InputError
from perwatt.networks import build
from perwatt.networks.training import AUXILIARY_WEIGHT
from perwatt.train.augment import mixing
from perwatt.train.batches import Batch
from perwatt.train.learner import Learner, class_weights
from perwatt.train.module import initialise, training_form
from perwatt.train.recipe import RATE_BATCH, RECIPES, Recipe, from_object, learning_rate, recipe_for

CLASSES = 5
PLAIN = Recipe(batch=12, weight_decay=0.0, momentum=0.0, warmup_epochs=0, final_rate=1.0, clip=0, augment="none")
# FP32 sums of at most a few hundred products, a few steps deep.
CLOSE = 2e-5


class Heads(nn.Module):  # type: ignore[misc]
    """A module with auxiliary answers in training, as GoogLeNet's."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.main, self.side = nn.Linear(12, 8), nn.Linear(8, CLASSES), nn.Linear(8, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        inner = self.body(images.flatten(1)).tanh()
        return (self.main(inner), self.side(inner)) if self.training else self.main(inner)


def module(seed: int = 1, drop: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8) if drop < 0 else nn.Tanh(), nn.Dropout(max(drop, 0)),
        nn.Linear(8, CLASSES),
    )  # fmt: skip


def batch(seed: int, count: int = 12) -> Batch:
    random = np.random.default_rng(seed)
    images = random.standard_normal((count, 3, 2, 2)).astype(np.float32)
    return Batch(images, random.integers(0, CLASSES, count))


def weights(learned: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in learned.state_dict().items()}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def by_hand(recipe: Recipe, steps: int, seed: int = 1, share: float = 1.0) -> dict[str, np.ndarray]:
    """Return the weights after so many steps of momentum SGD, written out in NumPy float64 for the small module."""
    start = weights(module())
    names = ("1.weight", "1.bias", "4.weight", "4.bias")
    value = {name: start[name].astype(np.float64) for name in names}
    speed = {name: np.zeros_like(array) for name, array in value.items()}
    for step in range(steps):
        given = batch(step)
        x = given.images.reshape(12, -1).astype(np.float64)
        target = np.full((12, CLASSES), recipe.label_smoothing / CLASSES)
        target[np.arange(12), given.labels] += 1 - recipe.label_smoothing
        mixed = mixing(recipe, seed, step, 12)
        if mixed is not None:
            part, partners = mixed
            x, target = part * x + (1 - part) * x[partners], part * target + (1 - part) * target[partners]
        hidden = np.tanh(x @ value["1.weight"].T + value["1.bias"])
        logits = hidden @ value["4.weight"].T + value["4.bias"]
        likely = np.exp(logits - logits.max(1, keepdims=True))
        likely /= likely.sum(1, keepdims=True)
        outer = (likely - target) / 12
        inner = (outer @ value["4.weight"]) * (1 - hidden**2)
        gradient = {
            "1.weight": inner.T @ x,
            "1.bias": inner.sum(0),
            "4.weight": outer.T @ hidden,
            "4.bias": outer.sum(0),
        }
        norm = math.sqrt(sum(float((each**2).sum()) for each in gradient.values()))
        scale = min(1.0, recipe.clip / norm) if recipe.clip else 1.0
        rate = learning_rate(recipe, step, 10)
        for name in names:
            decay = recipe.weight_decay if value[name].ndim > 1 else 0.0
            speed[name] = recipe.momentum * speed[name] + scale * gradient[name] + decay * value[name]
            value[name] = value[name] - rate * speed[name]
    return value


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"momentum": 0.9},
        {"weight_decay": 0.02, "momentum": 0.5},
        {"label_smoothing": 0.2},
        {"mixup": 0.5, "label_smoothing": 0.1},
        {"clip": 0.05},
        {"warmup_epochs": 0.5, "final_rate": 0.1, "epochs": 2},
        {"accumulate": 3},
        {"accumulate": 4, "mixup": 0.3, "label_smoothing": 0.1, "momentum": 0.9},
    ],
    ids=str,
)
def test_steps_are_the_formula_written_out(changes: dict[str, float]) -> None:
    recipe = Recipe(**{**vars(PLAIN), "learning_rate": 8.0, **changes})  # type: ignore[arg-type]
    learner = Learner(module(), recipe, 1, 10)
    for step in range(6):
        learner.learn(batch(step))
    expected = by_hand(recipe, 6)
    got = weights(learner.module)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=CLOSE * max(1.0, abs(value).max()))
    assert learner.step == 6
    assert any(abs(value - weights(module())[name]).max() > 0.01 for name, value in expected.items())


def test_adamw_is_pytorchs_with_decay_on_matrices_only() -> None:
    recipe = Recipe(**{**vars(PLAIN), "optimizer": "adamw", "learning_rate": 0.3, "weight_decay": 0.1})  # type: ignore[arg-type]
    learner = Learner(module(), recipe, 1, 10)
    twin = module()
    matrices = [each for each in twin.parameters() if each.ndim > 1]
    vectors = [each for each in twin.parameters() if each.ndim == 1]
    rate = 0.3 * 12 / RATE_BATCH
    both = [torch.optim.AdamW(matrices, lr=rate, weight_decay=0.1), torch.optim.AdamW(vectors, lr=rate, weight_decay=0)]
    for step in range(5):
        given = batch(step)
        learner.learn(given)
        twin.zero_grad()
        nn.functional.cross_entropy(twin(torch.from_numpy(given.images)), torch.from_numpy(given.labels)).backward()
        for each in both:
            each.step()
    for name, value in weights(twin).items():
        np.testing.assert_allclose(weights(learner.module)[name], value, rtol=0, atol=CLOSE)


def test_fused_updates_of_convolutions_are_those_written_out() -> None:
    """The fused kernel goes over memory, whatever its order: weights, gradients and momenta must share one."""
    recipe = Recipe(**{**vars(PLAIN), "learning_rate": 2.0, "momentum": 0.9, "weight_decay": 0.01})  # type: ignore[arg-type]
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(3, 5, 2, padding=1), nn.Tanh(), nn.Conv2d(5, 4, 3), nn.Flatten())
    learner = Learner(network, recipe, 1, 10)
    value = {name: each.detach().double().clone() for name, each in network.named_parameters()}
    speed = {name: torch.zeros_like(each) for name, each in value.items()}
    assert not network[0].weight.is_contiguous()  # else this shows nothing
    for step in range(4):
        random = np.random.default_rng(step)
        images = random.standard_normal((12, 2, 2, 3)).astype(np.float32).transpose(0, 3, 1, 2)
        learner.learn(Batch(images, random.integers(0, 4, 12)))
        rate = learning_rate(recipe, step, 10)
        for name, each in network.named_parameters():
            assert each.grad.stride() == each.stride()
            decay = recipe.weight_decay if each.ndim > 1 else 0.0
            speed[name] = recipe.momentum * speed[name] + each.grad.double() + decay * value[name]
            value[name] = value[name] - rate * speed[name]
            torch.testing.assert_close(each.detach().double(), value[name], rtol=0, atol=CLOSE)


def test_clipping_leaves_what_is_short_enough_and_lets_no_nan_through_unseen() -> None:
    def gradients(clip: float, spoil: bool = False) -> tuple[list[torch.Tensor], float]:
        learner = Learner(module(), Recipe(**{**vars(PLAIN), "clip": clip}), 1, 10)  # type: ignore[arg-type]
        given = batch(0)
        if spoil:
            given.images[0] = math.nan
        learner.learn(given)
        return [each.grad for each in learner.learned], float(learner.norm)

    free, _ = gradients(0)
    wide, norm = gradients(1e3)
    assert all(torch.equal(one, other) for one, other in zip(free, wide, strict=True))
    assert norm == pytest.approx(math.sqrt(sum(float((each.double() ** 2).sum()) for each in free)), rel=1e-5)
    cut, _ = gradients(norm / 2)
    for one, other in zip(free, cut, strict=True):
        torch.testing.assert_close(one / 2, other, rtol=1e-5, atol=0)
    spoilt, norm = gradients(1e3, spoil=True)
    assert math.isnan(norm)
    assert all(each.isnan().all() for each in spoilt)


def test_class_weights_weigh_by_the_inverse_of_the_count() -> None:
    labels = np.array([0] * 6 + [1] * 2 + [2])
    found = class_weights(labels, 3)
    np.testing.assert_allclose(found * np.bincount(labels), 3.0)
    np.testing.assert_allclose(found[labels].mean(), 1.0)
    given = batch(3)
    heavy = np.array([2.0, 0.0, 0.0, 0.5, 1.0])
    learner = Learner(module(), Recipe(**{**vars(PLAIN), "learning_rate": 4.0}), 1, 10, heavy)  # type: ignore[arg-type]
    learner.learn(given)
    twin = module()
    each = nn.functional.cross_entropy(
        twin(torch.from_numpy(given.images)), torch.from_numpy(given.labels), reduction="none"
    )
    (each * torch.tensor(heavy[given.labels], dtype=torch.float32)).mean().backward()
    for (name, tensor), after in zip(twin.named_parameters(), weights(learner.module).values(), strict=True):
        assert tensor.grad is not None
        np.testing.assert_allclose(
            after, (tensor - 4.0 * 12 / RATE_BATCH * tensor.grad).detach(), atol=CLOSE, err_msg=name
        )


def test_auxiliary_answers_count_as_the_paper_says() -> None:
    torch.manual_seed(4)
    heads = Heads()
    torch.manual_seed(4)
    twin = Heads()
    given = batch(1)
    Learner(heads, Recipe(**{**vars(PLAIN), "learning_rate": 4.0}), 1, 10).learn(given)  # type: ignore[arg-type]
    main, side = twin(torch.from_numpy(given.images))
    labels = torch.from_numpy(given.labels)
    loss = nn.functional.cross_entropy(main, labels) + AUXILIARY_WEIGHT * nn.functional.cross_entropy(side, labels)
    loss.backward()
    for name, tensor in twin.named_parameters():
        assert tensor.grad is not None
        after = (tensor - 4.0 * 12 / RATE_BATCH * tensor.grad).detach().numpy()
        np.testing.assert_allclose(weights(heads)[name], after, atol=CLOSE)


def test_the_average_follows_weights_and_running_statistics() -> None:
    recipe = Recipe(**{**vars(PLAIN), "ema": 0.7, "learning_rate": 4.0})  # type: ignore[arg-type]
    learner = Learner(module(drop=-1), recipe, 1, 10)
    expected = {name: value.astype(np.float64) for name, value in weights(learner.module).items()}
    for step in range(5):
        learner.learn(batch(step))
        decay = min(0.7, (2 + step) / (11 + step))
        for name, value in weights(learner.module).items():
            expected[name] = decay * expected[name] + (1 - decay) * value if value.dtype == np.float32 else value
    for name, value in weights(learner.average).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)
    assert weights(learner.average)["2.num_batches_tracked"] == 5


def test_dropout_follows_from_the_step_not_from_what_ran_before() -> None:
    results = []
    for disturb in (0, 3):
        learner = Learner(module(drop=0.5), PLAIN, 1, 10)
        for step in range(3):
            torch.rand(disturb + 1)
            learner.learn(batch(step))
        results.append(weights(learner.module))
    for name, value in results[0].items():
        np.testing.assert_array_equal(value, results[1][name])


def test_a_step_leaves_nothing_behind_in_pytorch() -> None:
    learner = Learner(module(drop=0.5), PLAIN, 1, 10)
    learner.learn(batch(0))
    before = len(torch.cuda._queued_calls)
    learner.learn(batch(1))
    assert len(torch.cuda._queued_calls) == before


def test_the_parts_of_a_step_drop_differently() -> None:
    torch.manual_seed(1)
    seen: list[torch.Tensor] = []
    drop = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, CLASSES))
    drop[1].register_forward_hook(lambda layer, given, made: seen.append((made == 0).detach().clone()))
    Learner(drop, Recipe(**{**vars(PLAIN), "accumulate": 2}), 1, 10).learn(batch(1))  # type: ignore[arg-type]
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_sums_are_restored_in_the_memory_order_of_their_weights(optimizer: str) -> None:
    def convolution(seed: int) -> Learner:
        torch.manual_seed(seed)
        layers = nn.Sequential(nn.Conv2d(3, 7, 2), nn.ReLU(), nn.Flatten(), nn.Linear(7, CLASSES))
        return Learner(layers, Recipe(**{**vars(PLAIN), "optimizer": optimizer, "momentum": 0.9}), 1, 10)  # type: ignore[arg-type]

    whole, other = convolution(1), convolution(2)
    whole.learn(batch(1))
    tensors, values = whole.state()
    other.restore(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}, values
    )
    for learner in (whole, other):
        for weight, kept in learner.optimizer.state.items():
            assert all(sum_.stride() == weight.stride() for sum_ in kept.values() if sum_.shape == weight.shape)
    for step in (2, 3):
        whole.learn(batch(step))
        other.learn(batch(step))
    for (name, one), another in zip(whole.state()[0].items(), other.state()[0].values(), strict=True):
        assert torch.equal(one, another), name


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_restored_learner_goes_on_bit_for_bit(optimizer: str) -> None:
    changes = {"optimizer": optimizer, "ema": 0.9, "momentum": 0.9, "mixup": 0.3, "label_smoothing": 0.1}
    recipe = Recipe(**{**vars(PLAIN), **changes})  # type: ignore[arg-type]
    whole = Learner(module(drop=0.4), recipe, 1, 10)
    for step in range(7):
        if step == 4:
            tensors, values = whole.state()
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        whole.learn(batch(step))
    other = Learner(module(seed=99, drop=0.4), recipe, 1, 10)
    other.restore(tensors, values)
    for step in range(4, 7):
        other.learn(batch(step))
    for (name, one), another in zip(whole.state()[0].items(), other.state()[0].values(), strict=True):
        assert torch.equal(one, another), name
    assert whole.state()[1] == other.state()[1]


def test_a_score_is_counted_right() -> None:
    learner = Learner(module(), PLAIN, 1, 10)
    batches = [batch(1), batch(2, 5)]
    with torch.no_grad():
        logits = torch.cat([learner.module.eval()(torch.from_numpy(each.images)) for each in batches]).double().numpy()
    labels = np.concatenate([each.labels for each in batches])
    likely = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = learner.score(batches)
    assert found.count == 17
    assert found.top1 == (logits.argmax(1) == labels).mean()
    assert found.top5 == 1.0  # of five classes
    assert math.isclose(found.loss, -np.log(likely[np.arange(17), labels]).mean(), rel_tol=1e-6)


def test_the_rate_rises_to_its_peak_and_falls_to_its_floor() -> None:
    recipe = Recipe(epochs=10, batch=512, learning_rate=0.1, warmup_epochs=2, final_rate=0.01)
    rates = [learning_rate(recipe, step, 20) for step in range(200)]
    peak = int(np.argmax(rates))
    assert peak == 40
    assert math.isclose(rates[peak], 0.2)
    assert all(one < other for one, other in pairwise(rates[:41]))
    assert all(one > other for one, other in pairwise(rates[40:]))
    assert math.isclose(learning_rate(recipe, 200, 20), 0.002)
    assert math.isclose(rates[120], 0.2 * (0.01 + 0.99 / 2), rel_tol=1e-9)  # half of the way along the cosine


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_short_run_reaches_its_peak_and_falls_too(epochs: int) -> None:
    recipe = Recipe(epochs=epochs, batch=RATE_BATCH, learning_rate=0.1, warmup_epochs=3, final_rate=0.01)
    rates = [learning_rate(recipe, step, 40) for step in range(40 * epochs)]
    assert int(np.argmax(rates)) == 10 * epochs
    assert math.isclose(max(rates), 0.1)
    assert rates[-1] < 0.0015


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch": 30, "accumulate": 4}, "divides"),
        ({"learning_rate": 0.0}, "learning rate"),
        ({"learning_rate": math.nan}, "learning rate"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"mixup": -1.0}, "mixup"),
        ({"crop_area": 0.0}, "crop_area"),
        ({"augment": "cut"}, "augment"),
        ({"optimizer": "adam"}, "optimizer"),
        ({"weight_decay": math.inf}, "weight_decay"),
    ],
)
def test_a_senseless_recipe_is_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Recipe(**changes)  # type: ignore[arg-type]


def test_recipes_come_back_as_they_were() -> None:
    for name in RECIPES:
        recipe = recipe_for(name, "lenet", grey=True, epochs=3)
        assert from_object(recipe.as_object()) == recipe
        assert (recipe.epochs, recipe.augment, recipe.flip) == (3, "shift", False)
    with pytest.raises(InputError, match="quick"):
        recipe_for("fast", "lenet", grey=True)
    with pytest.raises(InputError, match="speed"):
        from_object({"speed": 1})


@pytest.mark.parametrize(
    "network", ["lenet", "googlenet", "squeezenet1.1", pytest.param("resnet50", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_halves_learn_what_fp32_learns(network: str, precision: str) -> None:
    """PyTorch's autocast and scaled gradients are the same on a CPU as on a GPU, kernels apart.

    The weights stay FP32, and a step moves them nearly as FP32 would: a half has 8 or 11 bits, and a network is some
    tens of roundings deep. Batch normalisation over a handful of numbers divides by their differences, so that of
    resnet50 only the loss is alike.
    """
    size = 32 if network == "lenet" else 64
    graph = build(network, classes=4, size=size, auxiliary=network == "googlenet")
    channels = graph.values[graph.inputs[0]].shape[1]
    random = np.random.default_rng(4)
    spread = 1.0 if network in ("lenet", "resnet50") else 60.0  # Caffe's networks are fed pixels less their mean
    images = (random.standard_normal((4, channels, size, size)) * spread).astype(np.float32)
    given = Batch(images, np.arange(4))
    moved, losses = {}, {}
    for name in ("fp32", precision):
        form = training_form(graph)
        initialise(form, network, 1)
        before = {key: tensor.clone() for key, tensor in form.named_parameters()}
        recipe = Recipe(**{**vars(PLAIN), "batch": 4, "precision": name, "ema": 0.5})  # type: ignore[arg-type]
        learner = Learner(form, recipe, 1, 10)
        learner.scaler = torch.amp.GradScaler("cpu", enabled=name == "fp16", init_scale=2.0**10)
        learner.learn(given)
        assert all(tensor.dtype == torch.float32 for tensor in form.state_dict().values())
        assert math.isfinite(learner.tally.values()[0])
        losses[name] = learner.tally.values()[0]
        moved[name] = torch.cat([(tensor.detach() - before[key]).flatten() for key, tensor in form.named_parameters()])
        assert all(torch.isfinite(tensor).all() for tensor in learner.average.state_dict().values())
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.15)
    alike = torch.nn.functional.cosine_similarity(moved["fp32"].double(), moved[precision].double(), dim=0)
    if network != "resnet50":
        assert alike > (0.9 if precision == "bf16" else 0.98)


def test_a_first_step_that_is_skipped_leaves_no_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused update then writes nothing, not even a first momentum; what was not written is filled with NaN here."""
    recipe = Recipe(**{**vars(PLAIN), "precision": "fp16", "momentum": 0.9})  # type: ignore[arg-type]
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        skipped, begun = Learner(module(), recipe, 1, 10), Learner(module(), recipe, 1, 10)
        skipped.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
        skipped.learn(batch(1))
        begun.step = skipped.step
        begun.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        skipped.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        for number in (2, 3):
            skipped.learn(batch(number))
            begun.learn(batch(number))
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in weights(skipped.module).items():
        np.testing.assert_array_equal(value, weights(begun.module)[name])


def test_a_gradient_beyond_fp16_is_skipped_and_the_scale_is_kept() -> None:
    recipe = Recipe(**{**vars(PLAIN), "precision": "fp16", "clip": 5.0, "learning_rate": 4.0})  # type: ignore[arg-type]
    learner = Learner(module(), recipe, 1, 10)
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    before = weights(learner.module)
    learner.learn(batch(1))
    for name, value in weights(learner.module).items():
        np.testing.assert_array_equal(value, before[name])
    assert learner.step == 1
    tensors, values = learner.state()
    assert json.loads(json.dumps(values))["scaler"]["scale"] == 2.0**119
    other = Learner(module(seed=9), recipe, 1, 10)
    other.restore(tensors, values)
    assert other.scaler.get_scale() == 2.0**119
