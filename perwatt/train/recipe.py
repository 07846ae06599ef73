"""Recipe: every decision of a training run that is not the network or the data; RECIPES: three that are ready."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from perwatt.errors import InputError

Optimizer = Literal["sgd", "adamw"]
Augmenting = Literal["none", "shift", "crop"]
Metric = Literal["top1", "top5", "loss"]
TrainingPrecision = Literal["fp32", "bf16", "fp16"]
# The batch for which learning rates are given; others are scaled in proportion (Goyal et al., 2017, arXiv:1706.02677).
RATE_BATCH = 256
# Learning rates for RATE_BATCH images, scaled in proportion from the papers or from Caffe's published solvers: 0.01 for
# 128 images (alexnet), 256 (caffenet, vgg16) or 64 (lenet), 0.04 for 512 (squeezenet), 0.1 for 256 (resnet50). The
# solver of GoogLeNet says 0.01 for 32: 0.08 here, which a network without batch normalisation is too easily lost with.
RATES: Mapping[str, float] = MappingProxyType(
    {
        "alexnet": 0.02,
        "caffenet": 0.01,
        "vgg16": 0.01,
        "lenet": 0.04,
        "squeezenet1.1": 0.02,
        "googlenet": 0.04,
        "resnet50": 0.1,
        "efficientnet-lite0": 0.1,
    }
)
# A run of few epochs would else end before its rate has risen.
LONGEST_WARMUP = 0.25
ADAMW_RATE, ADAMW_DECAY = 1e-3, 0.05


@dataclass(frozen=True)
class Recipe:
    """How to train. Raises InputError when a value makes no sense.

    `batch` images make one step, in `accumulate` equal parts whose gradients are added. `learning_rate` is for
    RATE_BATCH images; it rises linearly over `warmup_epochs`, at most LONGEST_WARMUP of the run, and falls along half a
    cosine to `final_rate` of itself.
    `augment` is "crop" (a random part of the photograph, at least `crop_area` of it), "shift" (up to `shift` of the
    side, the edge repeated) or "none"; `flip` mirrors half of the images. `mixup` is the alpha of its beta
    distribution, 0 for none (Zhang et al., 2018, arXiv:1710.09412). `ema` is the decay of the average of weights that
    is validated and deployed, 0 for none. Training stops early when `metric` has not improved for `patience` epochs, 0
    for never. `clip` limits the norm of a step's gradient, 0 for no limit. `class_weights` weighs each class by the
    inverse of its count.
    """

    epochs: int = 20
    batch: int = 64
    accumulate: int = 1
    optimizer: Optimizer = "sgd"
    learning_rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0
    final_rate: float = 0.01
    clip: float = 5.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    augment: Augmenting = "crop"
    crop_area: float = 0.35
    shift: float = 0.08
    flip: bool = True
    ema: float = 0.0
    patience: int = 0
    metric: Metric = "top1"
    class_weights: bool = False
    precision: TrainingPrecision = "fp32"

    def __post_init__(self) -> None:
        least: dict[str, float] = {
            "epochs": 1,
            "batch": 1,
            "accumulate": 1,
            "patience": 0,
            "warmup_epochs": 0,
            "weight_decay": 0,
        }
        for name, low in least.items():
            if not low <= getattr(self, name) < math.inf:
                raise InputError(f"recipe: {name}: expected a number from {low}, got {getattr(self, name)}")
        shares = {"momentum": 1.0, "label_smoothing": 1.0, "ema": 1.0, "final_rate": 1.01, "shift": 0.5, "mixup": 10.01}
        for name, limit in shares.items():
            if not 0 <= getattr(self, name) < limit:
                raise InputError(
                    f"recipe: {name}: expected a number from 0 to below {limit:g}, got {getattr(self, name)}"
                )
        if not 0 < self.learning_rate < math.inf or not 0 <= self.clip < math.inf:
            raise InputError(f"recipe: expected a learning rate above 0, got {self.learning_rate}, clip {self.clip}")
        if not 0 < self.crop_area <= 1:
            raise InputError(f"recipe: crop_area: expected a share above 0 and at most 1, got {self.crop_area}")
        if self.batch % self.accumulate:
            raise InputError(
                f"recipe: expected a batch that accumulate divides, got {self.batch} in {self.accumulate} parts; "
                f"try a batch of {max(1, self.batch // self.accumulate) * self.accumulate}"
            )
        for name, kind in (
            ("optimizer", Optimizer),
            ("augment", Augmenting),
            ("metric", Metric),
            ("precision", TrainingPrecision),
        ):
            if getattr(self, name) not in get_args(kind):
                raise InputError(
                    f"recipe: {name}: expected one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}"
                )

    def as_object(self) -> dict[str, Any]:
        """Return the recipe as plain values for JSON."""
        return asdict(self)


# quick shows in minutes that everything fits; standard is for results; long squeezes out the last points.
RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "quick": Recipe(epochs=10, warmup_epochs=1.0, label_smoothing=0.05, ema=0.99),
        "standard": Recipe(epochs=60, warmup_epochs=3.0, label_smoothing=0.1, ema=0.998, patience=20),
        "long": Recipe(
            epochs=200, warmup_epochs=5.0, label_smoothing=0.1, mixup=0.2, crop_area=0.2, ema=0.9998, patience=50
        ),
    }
)


def recipe_for(name: str, network: str, *, grey: bool, **changes: Any) -> Recipe:
    """Return the recipe of RECIPES that fits a network, with those of `changes` that are not None.

    The learning rate is the network's; small grey pictures (digits, scans) are shifted, for cutting or mirroring them
    makes other signs of them. Raises InputError when there is no such recipe or a value makes no sense.
    """
    found = RECIPES.get(name)
    if found is None:
        raise InputError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}; choose one of these")
    if grey:
        found = replace(found, augment="shift", flip=False)
    if changes.get("optimizer") == "adamw":
        found = replace(found, optimizer="adamw", learning_rate=ADAMW_RATE, weight_decay=ADAMW_DECAY)
    else:
        found = replace(found, learning_rate=RATES.get(network, found.learning_rate))
    return changed(found, **changes)


def from_object(content: Mapping[str, Any]) -> Recipe:
    """Return the recipe that `as_object` wrote. Raises InputError for unknown names or senseless values."""
    known = {field.name for field in fields(Recipe)}
    if set(content) - known:
        raise InputError(
            f"recipe: expected {', '.join(sorted(known))}, got {', '.join(sorted(set(content) - known))} too"
        )
    return Recipe(**content)


def changed(recipe: Recipe, **changes: Any) -> Recipe:
    """Return the recipe with those values that are not None. Raises InputError when they make no sense."""
    return replace(recipe, **{name: value for name, value in changes.items() if value is not None})


def learning_rate(recipe: Recipe, step: int, steps_in_epoch: int) -> float:
    """Return the learning rate of a step, counted from 0 over the whole run."""
    peak = recipe.learning_rate * recipe.batch / RATE_BATCH
    warmup = min(recipe.warmup_epochs, LONGEST_WARMUP * recipe.epochs) * steps_in_epoch
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    whole = max(1.0, recipe.epochs * steps_in_epoch - warmup)
    share = min(1.0, (step - warmup) / whole)
    return peak * (recipe.final_rate + (1 - recipe.final_rate) * (1 + math.cos(math.pi * share)) / 2)
