"""Grouped convolution whose groups do not fill whole vectors: several groups as one dense convolution with zeros.

Groups are joined until their channels fill vectors (all of them, if need be); between the channels of different groups
the weights are zero. Two groups of 8 channels on 16 lanes cost two times their multiplications, 32 groups of 4 four
times. An infinite or undefined input reaches the groups it was joined with, as zero times infinity is no number.
"""

from dataclasses import replace
from math import lcm

import numpy as np

from perwatt.cpu.kernels.convolution import DIRECT
from perwatt.cpu.kernels.dense import known, operand
from perwatt.plan.algorithm import Algorithm, Call, Step, Tile


def joined_groups(step: Step) -> int | None:
    """Return how many groups become one, or None when the step is no grouped convolution."""
    groups = step.attributes["group"]
    assert isinstance(groups, int)
    if groups == 1:
        return None
    inputs, outputs = operand(step, 0).shape[1] // groups, step.outputs[0].shape[1] // groups
    wanted = lcm(step.lanes // np.gcd(inputs, step.lanes), step.lanes // np.gcd(outputs, step.lanes))
    return next((n for n in range(1, groups) if groups % n == 0 and n % wanted == 0), groups)


def expanded(step: Step, numbers: bool) -> Step:
    """Return the step with joined groups; without `numbers`, weights of the right shape that take no memory."""
    weights, joined, groups = known(step, 1), joined_groups(step), step.attributes["group"]
    assert joined is not None
    assert isinstance(groups, int)
    outputs, inputs = weights.shape[0] // groups, weights.shape[1]
    shape = (weights.shape[0], joined * inputs, *weights.shape[2:])
    if numbers:
        dense = np.zeros(shape, np.float32)
        for group in range(groups):
            own, place = slice(group * outputs, (group + 1) * outputs), group % joined * inputs
            dense[own, place : place + inputs] = weights[own]
    else:
        dense = np.broadcast_to(np.float32(0), shape)
    tensor = replace(operand(step, 1), shape=shape)
    attributes = {**step.attributes, "group": groups // joined}
    constants = {**step.constants, tensor.name: dense}
    return replace(step, inputs=(step.inputs[0], tensor, *step.inputs[2:]), attributes=attributes, constants=constants)


def _accepts(step: Step) -> str | None:
    if step.constant(1) is None:
        return "the weights are not constant"
    joined = joined_groups(step)
    if joined is None:
        return "not grouped"
    if joined == 1:
        return "every group fills whole vectors by itself"
    return DIRECT.accepts(expanded(step, False))


def _tiles(step: Step) -> list[Tile]:
    return list(DIRECT.tiles(expanded(step, False)))


def _seconds(step: Step, tile: Tile) -> float:
    return DIRECT.seconds(expanded(step, False), tile)


def _scratch_bytes(step: Step, tile: Tile) -> int:
    return DIRECT.scratch_bytes(expanded(step, False), tile)


def _calls(step: Step, tile: Tile) -> tuple[Call, ...]:
    return DIRECT.calls(expanded(step, True), tile)


GROUPS_JOINED = Algorithm(
    "groups joined", ("FusedConv",), _accepts, _tiles, _seconds, _calls, _scratch_bytes, halves=True
)
