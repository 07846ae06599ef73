"""The learner: forward, loss, backward, update, and everything that one step leaves behind for the next."""

import math
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from perwatt.errors import TrainingError
from perwatt.networks.training import AUXILIARY_WEIGHT
from perwatt.train.augment import dropout_seed, mixing
from perwatt.train.batches import Batch
from perwatt.train.recipe import Recipe, learning_rate

_REDUCED = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Score:
    """How good answers were: mean loss (natural logarithm), shares of images right with one and with five guesses."""

    loss: float
    top1: float
    top5: float
    count: int


@dataclass
class Tally:
    """Sums over images learned from, kept on the device so that counting does not wait for it."""

    loss: Tensor
    right: Tensor
    count: int

    def values(self) -> list[float]:
        """Return the sums as numbers: loss, right, count."""
        return [float(self.loss), float(self.right), float(self.count)]


class Learner:
    """A module that learns by a recipe. `step` counts the updates made, `average` is the module that is deployed.

    Everything random in a step follows from (seed, step), so that `state` and `restore` make an interrupted run equal
    to one that never stopped, bit for bit on one machine's CPU with one number of threads.
    """

    def __init__(
        self, module: nn.Module, recipe: Recipe, seed: int, steps_in_epoch: int, weights: np.ndarray | None = None
    ) -> None:
        # Batches come with their channels last; weights of the same order save PyTorch turning them at each step.
        self.module = module.to(memory_format=torch.channels_last)
        self.recipe, self.seed, self.steps_in_epoch = recipe, seed, steps_in_epoch
        self.device = next(module.parameters()).device
        self.average = deepcopy(module) if recipe.ema else module
        mine = module.state_dict()
        self.followed = [(tensor, mine[name]) for name, tensor in self.average.state_dict().items()]
        self.class_weights = None if weights is None else torch.tensor(weights, dtype=torch.float32, device=self.device)
        self.optimizer = _optimizer(module, recipe)
        self.learned = [each for group in self.optimizer.param_groups for each in group["params"]]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "fp16")
        self.step = 0
        self.norm: Tensor = torch.zeros((), device=self.device)
        self.tally = self.new_tally()

    def new_tally(self) -> Tally:
        """Return sums of nothing."""
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        return Tally(zero, zero.clone(), 0)

    def learn(self, batch: Batch) -> None:
        """Make one update from a batch."""
        recipe = self.recipe
        images, labels = self._given(batch)
        others, share = labels, 1.0
        mixed = mixing(recipe, self.seed, self.step, len(labels))
        if mixed is not None:
            share, partners = mixed
            images, others = share * images + (1 - share) * images[partners], labels[partners]
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, self.step, self.steps_in_epoch)
        if not self.module.training:  # going through hundreds of modules at every step would be felt
            self.module.train()
        self.optimizer.zero_grad()
        size = math.ceil(len(labels) / recipe.accumulate)
        parts = zip(images.split(size), labels.split(size), others.split(size), strict=True)
        for number, (some, its_labels, its_others) in enumerate(parts):
            self._seed(dropout_seed(self.seed, self.step, number))
            with torch.autocast(self.device.type, _REDUCED.get(recipe.precision), recipe.precision in _REDUCED):
                answers = self.module(some)  # 1. forward
                loss, main = self._loss(answers, its_labels, its_others, share)  # 2. loss
            self.scaler.scale(loss / len(labels)).backward()  # 3. backward: the parts' gradients add up
            self._count(answers, main, its_labels if share >= 0.5 else its_others)
        self.scaler.unscale_(self.optimizer)
        if recipe.clip:
            self._clip(recipe.clip)
        self.scaler.step(self.optimizer)  # 4. update
        self.scaler.update()
        self.step += 1
        if recipe.ema:
            self._follow()

    def score(self, batches: Iterable[Batch]) -> Score:
        """Return how good the answers of `average` are, without learning."""
        self.average.eval()
        loss, first, five, count = 0.0, 0, 0, 0
        with torch.inference_mode():
            for batch in batches:
                images, labels = self._given(batch)
                logits = self.average(images).float()
                loss += float(functional.cross_entropy(logits.double(), labels, reduction="sum"))
                ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
                hits = ranked == labels[:, None]
                first, five, count = first + int(hits[:, 0].sum()), five + int(hits.sum()), count + len(labels)
        if count == 0:
            raise TrainingError("validation: expected at least one picture, got none; add some")
        return Score(loss / count, first / count, five / count, count)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that the next step depends on: tensors by name, and plain values."""
        tensors = {f"module/{name}": tensor for name, tensor in self.module.state_dict().items()}
        if self.recipe.ema:
            tensors |= {f"average/{name}": tensor for name, tensor in self.average.state_dict().items()}
        for place, kept in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{place}/{name}": value for name, value in kept.items() if value is not None}
        return tensors, {"step": self.step, "tally": self.tally.values(), "scaler": self.scaler.state_dict()}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Become the learner whose `state` this is. Raises TrainingError when it is that of another network."""
        try:
            self.module.load_state_dict(_below("module/", tensors))
            if self.recipe.ema:
                self.average.load_state_dict(_below("average/", tensors))
        except RuntimeError as error:
            told = " ".join(str(error).split())[:300]
            raise TrainingError(f"checkpoint: expected that of this network, got another: {told}") from error
        kept: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below("optimizer/", tensors).items():
            place, key = name.split("/")
            weight = self.learned[int(place)]
            # Other strides than the weight's would take another way through PyTorch, which may round otherwise.
            same = torch.empty_like(weight).copy_(tensor) if tensor.shape == weight.shape else tensor
            kept.setdefault(int(place), {})[key] = same
        self.optimizer.load_state_dict({"state": kept, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.scaler.load_state_dict(values["scaler"])
        self.step = int(values["step"])
        loss, right, count = values["tally"]
        self.tally = self.new_tally()
        self.tally.loss += loss
        self.tally.right += right
        self.tally.count = int(count)

    def _seed(self, seed: int) -> None:
        # Not torch.manual_seed: where no GPU is in use it keeps a traceback of every call for the day one is.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _given(self, batch: Batch) -> tuple[Tensor, Tensor]:
        images, labels = torch.from_numpy(batch.images), torch.from_numpy(batch.labels)
        return images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def _loss(
        self, answers: Tensor | tuple[Tensor, ...], labels: Tensor, others: Tensor, share: float
    ) -> tuple[Tensor, Tensor]:
        """Return the sum over the images that is made smaller, and the part of it that the main answer has."""
        main, *auxiliary = answers if isinstance(answers, tuple) else (answers,)
        own = self._entropy(main, labels, others, share)
        return sum((AUXILIARY_WEIGHT * self._entropy(each, labels, others, share) for each in auxiliary), own), own

    def _entropy(self, logits: Tensor, labels: Tensor, others: Tensor, share: float) -> Tensor:
        one = self._weighted(logits.float(), labels)
        # The loss is linear in its target: the loss for a mixture is the mixture of the losses.
        return one if share == 1.0 else share * one + (1 - share) * self._weighted(logits.float(), others)

    def _weighted(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.class_weights is None:
            return functional.cross_entropy(
                logits, labels, reduction="sum", label_smoothing=self.recipe.label_smoothing
            )
        each = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=self.recipe.label_smoothing)
        return (self.class_weights[labels] * each).sum()

    def _count(self, answers: Tensor | tuple[Tensor, ...], loss: Tensor, labels: Tensor) -> None:
        logits = answers[0] if isinstance(answers, tuple) else answers
        self.tally.loss += loss.detach()
        self.tally.right += (logits.detach().argmax(1) == labels).sum()
        self.tally.count += len(labels)

    def _clip(self, most: float) -> None:
        """Shrink the gradient to the norm `most` where it is larger."""
        self.norm = nn.utils.get_total_norm([each.grad for each in self.learned if each.grad is not None])
        # A factor of 1 would cost a pass over all gradients; only on a GPU is finding out dearer. Not `>`: NaN counts.
        if self.device.type != "cpu" or not float(self.norm) <= most:
            nn.utils.clip_grads_with_norm_(self.learned, most, self.norm)

    def _follow(self) -> None:
        """Let the average follow the module: weights and running statistics alike, faster while it is young."""
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for tensor, leader in self.followed:
                if tensor.is_floating_point():
                    tensor.lerp_(leader, 1 - decay)
                else:
                    tensor.copy_(leader)


def class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return a weight for each class, the inverse of its count, such that the mean over the images is 1."""
    counts = np.bincount(labels, minlength=classes)
    return np.asarray(len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)))


def _optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    # Biases and the scales of batch normalisations do not grow without bound; pulling them to 0 only hurts.
    learned = [each for each in module.parameters() if each.requires_grad]
    groups = [
        {"params": [each for each in learned if each.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [each for each in learned if each.ndim <= 1], "weight_decay": 0.0},
    ]
    # Fused: one pass over a weight, its gradient and its momentum, where PyTorch's own choice makes one a product.
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    optimizer = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, fused=True)
    if recipe.momentum:
        # Where the first step is skipped (FP16, beyond its range) PyTorch would go on from momenta it never wrote.
        for each in learned:
            optimizer.state[each]["momentum_buffer"] = torch.zeros_like(each)
    return optimizer


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
