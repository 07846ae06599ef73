"""PyTorch on an NVIDIA GPU: cuDNN in benchmark mode, the whole network captured as one CUDA graph.

A run is timed from the images in the host's memory to the output in the host's memory: the copy to the device, the
network, the copy back, and the wait for both. The 2015 figures did not include the copies. Input arrays are registered
with the driver (pinned) when they are first seen, in the first runs, which are not timed.
"""

import numpy as np
import torch

from perwatt.errors import EngineMissing, EngineRefused, NetworkError
from perwatt.graph import read
from perwatt.lab.engine import Job, Loaded, Precision
from perwatt.lab.engines.torch_module import GraphModule, channels_last

_TYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_WARMUP_RUNS = 5


class TorchCudaEngine:
    """One captured graph: conversion of the images to the wanted type and layout, and the network."""

    def load(self, job: Job) -> Loaded:
        if torch.version.cuda is None:
            raise EngineMissing(
                f"torch-cuda: PyTorch {torch.__version__} is built without CUDA; install a CUDA build of it"
            )
        if not torch.cuda.is_available():
            raise EngineMissing("torch-cuda: expected an NVIDIA GPU with a working driver, found none; see nvidia-smi")
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        # Sums of fp16 products are kept in fp32, as in convolutions.
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        dtype = _TYPES[job.precision]
        last = dtype != torch.float32  # tensor cores want channels last, fp32 without TF32 does not use them
        try:
            module = GraphModule(read(job.model_path), job.output_name).eval().to("cuda", dtype)
        except NetworkError as error:
            raise EngineRefused(f"torch-cuda: {error}") from error
        layout = torch.channels_last if last else torch.contiguous_format
        if last:
            channels_last(module)
        self._pinned: set[int] = set()
        self._input = torch.zeros(job.input_shape, device="cuda")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(stream):
            for _ in range(_WARMUP_RUNS):  # cuDNN chooses its algorithms here
                module(self._input.to(dtype=dtype, memory_format=layout)).float()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(self._graph):
            self._made = module(self._input.to(dtype=dtype, memory_format=layout)).float().contiguous()
        self._module = module
        self._output = torch.empty(self._made.shape, dtype=torch.float32, pin_memory=True)
        return Loaded(
            version=torch.__version__,
            precision=job.precision,
            options={
                "device": torch.cuda.get_device_name(),
                "cuda": str(torch.version.cuda),
                "cudnn": str(torch.backends.cudnn.version()),
                "cudnn.benchmark": "True",
                "allow_tf32": "False",
                "layout": "channels last" if last else "channels first",
                "type": f"{dtype}, whole model",
                "cuda graph": "the whole network",
                "timed region": "copy of fp32 images from pinned memory, network, copy of the output, synchronised",
            },
        )

    def run(self, images: np.ndarray) -> np.ndarray:
        self._pin(images)
        with torch.inference_mode():
            self._input.copy_(torch.from_numpy(images), non_blocking=True)
            self._graph.replay()
            self._output.copy_(self._made, non_blocking=True)
        torch.cuda.synchronize()
        output: np.ndarray = self._output.numpy()
        return output

    def close(self) -> None:
        for address in self._pinned:
            torch.cuda.cudart().cudaHostUnregister(address)
        del self._graph, self._made, self._module

    def _pin(self, images: np.ndarray) -> None:
        address = images.ctypes.data
        if address not in self._pinned:
            torch.cuda.cudart().cudaHostRegister(address, images.nbytes, 0)
            self._pinned.add(address)
