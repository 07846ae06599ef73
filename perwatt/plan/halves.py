"""Which tensors between steps are stored in halves: those whose every writer and reader can take them so."""

from collections.abc import Callable, Iterable, Sequence

from perwatt.plan.algorithm import Step, Tensor
from perwatt.plan.precision import Element, Precision

# Operators whose kernels read and write halves in channel blocks, with FP32 between.
TAKE_HALVES = {
    "FusedConv", "FusedGemm", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LRN", "Reorder",
    "FlattenBlocked", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Silu", "Elu", "Add",
    "Sub", "Mul", "Div", "Max", "Min", "Sum",
}  # fmt: skip


def stored_elements(
    steps: Sequence[Step], root: Callable[[str], str], callers: Iterable[str], precision: Precision
) -> dict[str, Element]:
    """Return how each buffer is stored that is not FP32, by the name of the tensor that owns it.

    `root` names the owner of the buffer a tensor lies in; `callers` are the caller's tensors, always FP32. A
    buffer with several tensors in it (the parts of a concat) is stored in one way, and so are the outputs of one step,
    which one kernel writes.
    """
    if precision.storage == "fp32":
        return {}
    kept = {root(name) for name in callers}
    found: set[str] = set()
    for step in steps:
        for tensor in (*step.inputs, *step.outputs):
            if tensor is None or tensor.name in step.constants:
                continue
            owner = root(tensor.name)
            found.add(owner)
            if not _takes(step, tensor) or tensor.name.partition("@")[0] in precision.kept:
                kept.add(owner)
    several = [{root(tensor.name) for tensor in step.outputs} for step in steps if len(step.outputs) > 1]
    while grown := [owners for owners in several if owners & kept and owners - kept]:
        kept |= set().union(*grown)
    return dict.fromkeys(sorted(found - kept), precision.storage)


def _takes(step: Step, tensor: Tensor) -> bool:
    if tensor.layout == "plain" or step.operator not in TAKE_HALVES:
        return False
    # Element by element, a map of one channel is read number by number.
    elementwise = step.operator not in ("FusedConv", "FusedGemm", "Reorder", "FlattenBlocked")
    return not elementwise or tensor.shape[1] > 1 or step.outputs[0].shape[1] == 1
