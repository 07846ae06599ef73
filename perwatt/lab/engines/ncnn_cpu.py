"""ncnn on the CPU, its storage types pinned; a batch is run in whichever of two ways is faster."""

import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ncnn
import numpy as np

from perwatt.errors import EngineRefused, NetworkError
from perwatt.graph import read
from perwatt.lab.engine import Job, Loaded, Precision
from perwatt.lab.engines.ncnn_writer import Section, sections

Way = Callable[[np.ndarray], np.ndarray]

# Left alone, ncnn stores the weights of fully connected layers in fp16 and calls that nothing in particular.
_STORAGE: dict[Precision, dict[str, bool]] = {
    "fp32": {},
    "fp16": {"use_fp16_packed": True, "use_fp16_storage": True, "use_fp16_arithmetic": True},
    "bf16": {"use_bf16_storage": True},
}
_PINNED = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_packed", "use_bf16_storage")
_TRIAL_RUNS = 3
_TOUCHES_ITS_INPUT = {"Scale", "ReLU", "Clip", "Sigmoid", "TanH", "LRN", "Softmax", "BinaryOp"}


class NcnnEngine:
    """The network as one or two ncnn networks (see ncnn_writer), run image by image or layer by layer."""

    def load(self, job: Job) -> Loaded:
        ncnn.set_omp_num_threads(job.threads)
        ncnn.set_omp_dynamic(0)
        try:
            parts = sections(read(job.model_path), job.output_name)
        except NetworkError as error:
            raise EngineRefused(f"ncnn: {error}") from error
        half = job.precision == "fp16" and platform.machine().lower() in ("x86_64", "amd64")
        if half and not any("\nInnerProduct " in part.parameters for part in parts):
            raise EngineRefused(
                "ncnn: fp16 on x86 is the weights of fully connected layers only, and this network has none; use fp32"
            )
        self._options: dict[str, str] = {}
        self._parts = parts
        # Memory is kept between runs, as in ncnn's own benchmark; the networks must not outlive these.
        self._allocators = (ncnn.UnlockedPoolAllocator(), ncnn.PoolAllocator())
        self._networks = [self._network(part, job) for part in parts]
        self._output: np.ndarray | None = None
        self._copy_input = parts[0].first_layer in _TOUCHES_ITS_INPUT  # it works in place, and would spoil the input
        ways: dict[str, Way] = {"image by image": self._image_by_image}
        if job.input_shape[0] > 1:
            ways["layer by layer"] = self._layer_by_layer
        way, self._run, trial = _fastest(ways, job)
        return Loaded(
            version=ncnn.__version__,
            precision=job.precision,
            options={
                **self._options,
                "batch": way + (", then the layers behind the maps over the batch as rows" if len(parts) > 1 else ""),
                **({"trial": trial} if trial else {}),
                **({"fp16": "the weights of fully connected layers; all else is fp32"} if half else {}),
                "allocators": "pools for tensors and workspace",
                "conversion": "by perwatt: batch normalisation and activations fused, shapes given",
            },
        )

    def run(self, images: np.ndarray) -> np.ndarray:
        return self._run(images)

    def close(self) -> None:
        for network in self._networks:
            network.clear()

    def _network(self, part: Section, job: Job) -> ncnn.Net:
        network = ncnn.Net()
        chosen: dict[str, bool | int] = {
            **dict.fromkeys(_PINNED, False),
            **_STORAGE[job.precision],
            "use_winograd_convolution": True,
            "use_sgemm_convolution": True,
            "use_packing_layout": True,
            "use_vulkan_compute": False,
            "num_threads": job.threads,
        }
        network.opt.blob_allocator, network.opt.workspace_allocator = self._allocators
        for name, value in chosen.items():
            setattr(network.opt, name, value)
            if getattr(network.opt, name) != value:
                raise EngineRefused(
                    f"ncnn: expected option {name}={value}, this build has {getattr(network.opt, name)}"
                )
        self._options = {name: str(value) for name, value in chosen.items()} | {
            "openmp_blocktime": str(network.opt.openmp_blocktime)
        }
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "network.bin"
            weights.write_bytes(part.weights)
            if network.load_param_mem(part.parameters) or network.load_model(str(weights)):
                raise EngineRefused("ncnn: cannot load the network that was written for it; see its last words")
        return network

    def _image_by_image(self, images: np.ndarray) -> np.ndarray:
        made = [self._extract(0, self._mat(image)) for image in images]
        return self._finish(np.stack(made).reshape(len(made), -1) if len(self._networks) > 1 else np.stack(made))

    def _layer_by_layer(self, images: np.ndarray) -> np.ndarray:
        mat = self._extract_mat(0, ncnn.Mat(images, batch_index=0))
        return self._finish(mat.numpy(batch_index=0))

    def _finish(self, made: np.ndarray) -> np.ndarray:
        if len(self._networks) == 1:
            return made
        rows = np.ascontiguousarray(made, np.float32)
        return self._extract(1, ncnn.Mat(rows).clone())

    def _mat(self, image: np.ndarray) -> ncnn.Mat:
        mat = ncnn.Mat(image)
        return mat.clone() if self._copy_input else mat

    def _extract_mat(self, at: int, mat: ncnn.Mat) -> ncnn.Mat:
        extractor = self._networks[at].create_extractor()
        result = ncnn.Mat()
        if extractor.input(self._parts[at].input, mat) or extractor.extract(self._parts[at].output, result):
            raise EngineRefused("ncnn: cannot run the network that was written for it; see its last words")
        return result

    def _extract(self, at: int, mat: ncnn.Mat) -> np.ndarray:
        return np.array(self._extract_mat(at, mat), np.float32)


def _fastest(ways: dict[str, Way], job: Job) -> tuple[str, Way, str]:
    if len(ways) == 1:
        return (*next(iter(ways.items())), "")
    images = np.random.default_rng(0).normal(size=job.input_shape).astype(np.float32)
    best = dict.fromkeys(ways, float("inf"))
    for turn in range(_TRIAL_RUNS + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way(images)
            if turn:  # the first is a warm-up
                best[name] = min(best[name], time.perf_counter() - start)
    chosen = min(best, key=best.__getitem__)
    return chosen, ways[chosen], ", ".join(f"{name} {seconds * 1e3:.4g} ms" for name, seconds in best.items())
