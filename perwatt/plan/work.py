"""Work of a step: multiply-adds of the direct method and the least bytes it must move, for tables and estimates."""

from dataclasses import dataclass
from math import prod

from perwatt.plan.algorithm import Step


@dataclass(frozen=True)
class Work:
    """Multiply-adds by the definition (Winograd needs fewer), bytes of constants read, bytes of tensors moved."""

    multiply_adds: int
    constant_bytes: int
    tensor_bytes: int


def work(step: Step) -> Work:
    """Return the work of one run of a step."""
    tensors = [t for t in (*step.inputs, *step.outputs) if t is not None and t.name not in step.constants]
    constant_bytes = sum(array.nbytes for array in step.constants.values())
    return Work(_multiply_adds(step), constant_bytes, 4 * sum(prod(t.shape) for t in tensors))


def _multiply_adds(step: Step) -> int:
    weights = step.inputs[1] if len(step.inputs) > 1 else None
    if step.operator == "FusedConv" and weights is not None:
        # Weights [outputs, channels of a group, height, width]: each output value takes the last three.
        return sum(prod(out.shape) for out in step.outputs) * prod(weights.shape[1:])
    if step.operator == "ConvTranspose" and weights is not None and step.inputs[0] is not None:
        # Weights [channels, outputs of a group, height, width]: each input value goes into the last three.
        return prod(step.inputs[0].shape) * prod(weights.shape[1:])
    if step.operator == "FusedGemm" and weights is not None:
        return step.outputs[0].shape[0] * prod(weights.shape)
    return 0
