"""ONNX Runtime behind a fixed-window batcher: LitServe, set up as its documentation says for throughput.

Runs in an environment of its own (`pip install litserve onnxruntime numpy`), without perwatt: float32 tensors as raw
bytes in, the first output as raw bytes out, so that neither JSON nor pictures are part of the comparison.
"""

import argparse
import socket
import sys
import threading
import time
import urllib.request
from typing import Annotated

import litserve
import numpy as np
import onnxruntime
from fastapi import Body, Response

Octets = Annotated[bytes, Body(media_type="application/octet-stream")]


class Network(litserve.LitAPI):
    """One ONNX network; LitServe gathers requests for `batch_timeout` seconds or until `max_batch_size` are there."""

    def __init__(self, path: str, threads: int, **options: float) -> None:
        super().__init__(**options)
        self.path = path
        self.threads = threads

    def setup(self, device: str) -> None:
        """Load the network and run it warm at every batch size."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        self.session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name
        self.size = tuple(self.session.get_inputs()[0].shape[1:])
        for batch in range(1, int(self.max_batch_size) + 1):
            self.session.run(None, {self.input: np.zeros((batch, *self.size), np.float32)})

    def decode_request(self, request: Octets) -> np.ndarray:
        """Take the tensor."""
        return np.frombuffer(request, "<f4").reshape(self.size)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        """Join the inputs."""
        return np.stack(inputs)

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Run the network."""
        return self.session.run(None, {self.input: inputs if inputs.ndim == 4 else inputs[np.newaxis]})[0]

    def unbatch(self, outputs: np.ndarray) -> list[np.ndarray]:
        """Part the outputs."""
        return list(outputs)

    def encode_response(self, output: np.ndarray) -> Response:
        """Give the output as bytes."""
        return Response(np.ascontiguousarray(output, "<f4").tobytes(), media_type="application/octet-stream")


def tell_when_ready(port: int) -> None:
    """Say where the server is once it says that it is healthy."""
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                if answer.status == 200:
                    break
        except OSError:
            pass
        time.sleep(0.2)
    versions = f"litserve {litserve.__version__}, onnxruntime {onnxruntime.__version__}"
    print(f"ready ({versions}) at http://127.0.0.1:{port}", file=sys.stderr, flush=True)


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("network")
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--window-ms", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    api = Network(
        given.network,
        given.threads,
        max_batch_size=given.max_batch,
        batch_timeout=given.window_ms / 1000,
    )
    server = litserve.LitServer(api, accelerator="cpu", timeout=30)
    threading.Thread(target=tell_when_ready, args=(port,), daemon=True).start()
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning", num_api_servers=1)


if __name__ == "__main__":
    main()
