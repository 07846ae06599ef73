"""PyTorch on the CPU in whichever of its ways is fastest for this network: eager, frozen TorchScript, or compiled."""

import time
import warnings
from collections.abc import Callable

import numpy as np
import torch

from perwatt.errors import EngineRefused, NetworkError
from perwatt.graph import read
from perwatt.lab.engine import Job, Loaded, Precision
from perwatt.lab.engines.torch_module import GraphModule, channels_last

Way = Callable[[torch.Tensor], torch.Tensor]
_TYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
_TRIAL_S = 1.5
# What compiling costs on one core without a cache: GoogLeNet's 140 nodes take 45 s.
_COMPILE_S, _COMPILE_NODE_S = 15.0, 0.25
_TRIAL_TURNS = (2, 20)  # least and most


class TorchEngine:
    """Channels last, gradients off, oneDNN; every way is timed at loading and the fastest one kept."""

    def load(self, job: Job) -> Loaded:
        if job.precision not in _TYPES:
            raise EngineRefused(f"torch: expected fp32 or bf16 on a CPU, got {job.precision}; use one of those")
        if job.precision == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            raise EngineRefused("torch: expected a processor with bf16 instructions, got one without; use fp32")
        torch.set_num_threads(job.threads)
        torch.set_num_interop_threads(1)
        torch.set_flush_denormal(True)
        torch.set_float32_matmul_precision("highest")
        self._dtype = _TYPES[job.precision]
        try:
            graph = read(job.model_path)
            self._module = GraphModule(graph, job.output_name).eval().to(self._dtype)
        except NetworkError as error:
            raise EngineRefused(f"torch: {error}") from error
        channels_last(self._module)
        example = torch.from_numpy(np.random.default_rng(0).normal(size=job.input_shape).astype(np.float32))
        makers: dict[str, Callable[[torch.Tensor], Way]] = {
            "eager": self._eager,
            "frozen TorchScript": self._script,
            "compiled": self._compiled,
        }
        wait_s = _COMPILE_S + _COMPILE_NODE_S * len(graph.nodes)
        left_out = wait_s > job.patience_s
        if left_out:
            del makers["compiled"]
        chosen, report = self._choose(makers, example)
        if left_out:
            report["trial: compiled"] = f"left out: about {wait_s:.0f} s, loading may take {job.patience_s:.0f} s"
        return Loaded(
            version=torch.__version__,
            precision=job.precision,
            options={
                "way": chosen,
                **report,
                "threads": str(torch.get_num_threads()),
                "layout": "channels last",
                "type": f"{self._dtype}, whole model",
                "float32_matmul_precision": torch.get_float32_matmul_precision(),
                "flush_denormal": "True",
                "inductor": "freezing",
            },
        )

    def run(self, images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            made = self._way(self._layout(torch.from_numpy(images))).float()
        output: np.ndarray = made.contiguous().numpy()
        return output

    def close(self) -> None:
        del self._way, self._module

    def _layout(self, images: torch.Tensor) -> torch.Tensor:
        return images.to(dtype=self._dtype, memory_format=torch.channels_last)

    def _eager(self, example: torch.Tensor) -> Way:
        way: Way = self._module
        return way

    def _script(self, example: torch.Tensor) -> Way:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # tracing warns of shapes that become constants, which is meant
            traced = torch.jit.freeze(torch.jit.trace(self._module, example, check_trace=False))
            way: Way = torch.jit.optimize_for_inference(traced)
        return way

    def _compiled(self, example: torch.Tensor) -> Way:
        from torch._inductor import config

        config.freezing = True
        way: Way = torch.compile(self._module, dynamic=False, fullgraph=True)
        return way

    def _choose(
        self, makers: dict[str, Callable[[torch.Tensor], Way]], example: torch.Tensor
    ) -> tuple[str, dict[str, str]]:
        """Keep the way whose shortest run is the shortest; they take turns, so that a busy moment hits all alike."""
        ways: dict[str, Way] = {}
        report = {}
        with torch.inference_mode():
            for name, make in makers.items():
                start = time.perf_counter()
                try:
                    way = make(self._layout(example))
                    for _ in range(3):  # graphs are built and weights reordered here
                        way(self._layout(example))
                except Exception as error:  # noqa: BLE001 a way that fails is not taken, and the row says so
                    report[name] = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
                    continue
                ways[name] = way
                report[name] = f"built in {time.perf_counter() - start:.2g} s"
            if not ways:
                raise EngineRefused(f"torch: no way of running this network works ({report})")
            shortest = dict.fromkeys(ways, float("inf"))
            end = time.perf_counter() + _TRIAL_S
            for turn in range(_TRIAL_TURNS[1]):
                if turn >= _TRIAL_TURNS[0] and time.perf_counter() > end:
                    break
                for name, way in ways.items():
                    start = time.perf_counter()
                    way(self._layout(example))
                    shortest[name] = min(shortest[name], time.perf_counter() - start)
        chosen = min(shortest, key=shortest.__getitem__)
        self._way = ways[chosen]
        timed = {name: f"{report[name]}, {seconds * 1e3:.4g} ms" for name, seconds in shortest.items()}
        return chosen, {f"trial: {name}": line for name, line in (report | timed).items()}
