"""Model: what a caller runs. NumPy arrays in, NumPy arrays out."""

import threading
from collections.abc import Mapping

import numpy as np

from perwatt.cpu.build import Code
from perwatt.errors import InputError
from perwatt.graph import Value
from perwatt.plan import Plan, without_constants, work


class Model:
    """A compiled network. Safe to call from several threads; calls of one Model wait for each other.

    `plan` prints every decision with its reason. Inputs are copied only when they are not float32 in C order.
    """

    def __init__(self, plan: Plan, code: Code, inputs: Mapping[str, Value], outputs: Mapping[str, Value]) -> None:
        self.work = tuple(work(planned.step) for planned in plan.steps)
        # The weights are packed by now; keeping the network's own copy would double the memory.
        self.plan, self._code = without_constants(plan), code
        self.inputs, self.outputs = dict(inputs), dict(outputs)
        placement = plan.placement
        self._results = {
            buffer: np.zeros(outputs[name].shape, np.float32)
            for name, buffer in zip(outputs, placement.outputs, strict=True)
        }
        self._buffers = dict(zip(outputs, placement.outputs, strict=True))
        self._addresses = {buffer: array.ctypes.data for buffer, array in self._results.items()}
        self._lock = threading.Lock()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the first output for the network's only input.

        Raises InputError when the network has several inputs, or the array's shape or type is another.
        """
        if len(self.inputs) != 1:
            raise InputError(
                f"expected one array for each of {', '.join(self.inputs)}; call model.run({{name: array}})"
            )
        return next(iter(self.run({next(iter(self.inputs)): images}).values()))

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return every output by name. Raises InputError for a missing, unknown or unfitting array."""
        ready = {name: self._checked(name, arrays) for name in self.inputs}
        unknown = set(arrays) - set(self.inputs)
        if unknown:
            raise InputError(f"no input is named {sorted(unknown)[0]!r}; this network's are {', '.join(self.inputs)}")
        with self._lock:
            self._addresses.update({name: array.ctypes.data for name, array in ready.items()})
            self._code.bind(self._addresses)
            self._code.run()
            # Kernels write float32; where the network says int64, it is places that ArgMax found. A new array each.
            return {
                name: self._results[buffer].astype(self.outputs[name].dtype) for name, buffer in self._buffers.items()
            }

    def time_steps(self, arrays: Mapping[str, np.ndarray], repeats: int) -> np.ndarray:
        """Return the seconds of each step of the plan in each repeat, float64 [repeats, steps]."""
        ready = {name: self._checked(name, arrays) for name in self.inputs}
        with self._lock:
            self._addresses.update({name: array.ctypes.data for name, array in ready.items()})
            self._code.bind(self._addresses)
            return self._code.time_steps(repeats)

    def code_listing(self) -> str:
        """Return the functions the plan calls, with how often each is called."""
        return "\n".join(f"{count:4} x {name}" for name, count in self._code.functions.items())

    @property
    def working_bytes(self) -> int:
        """Activations and workspace, without weights."""
        return self._code.working_bytes

    @property
    def weight_bytes(self) -> int:
        """Packed weights and tables."""
        return self._code.weight_bytes

    def _checked(self, name: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        expected = self.inputs[name]
        if name not in arrays:
            given = ", ".join(arrays) or "nothing"
            raise InputError(
                f"expected an array for input {name!r}, got {given}; this network reads {', '.join(self.inputs)}"
            )
        array = arrays[name]
        if not isinstance(array, np.ndarray):
            raise InputError(f"input {name!r}: expected a NumPy array, got {type(array).__name__}; use numpy.asarray")
        if array.shape != expected.shape:
            raise InputError(
                f"input {name!r}: expected shape {expected.shape}, got {array.shape}; compile with batch="
                f"{array.shape[0] if array.ndim else 1} for another batch size"
            )
        if array.dtype != expected.dtype:
            raise InputError(f"input {name!r}: expected {expected.dtype}, got {array.dtype}; convert it with .astype")
        return np.ascontiguousarray(array)
