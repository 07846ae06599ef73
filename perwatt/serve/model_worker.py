"""The child side of a served network: one process that holds its Models and runs batches out of shared memory.

`python -m perwatt.serve.model_worker SOCKET MEMORY` is started by `process.py` with two open descriptors, never by
hand. It loads what the first message names, runs every batch size warm, says what it holds, and then waits in the
kernel for the next batch: an idle model process takes no processor time. It ends when the server's end of the socket
closes. Ctrl-C and SIGTERM are the server's business: what was accepted is still answered.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import sys
import time

import numpy as np

from perwatt import settings
from perwatt.errors import EngineRefused, PerwattError
from perwatt.serve import channel
from perwatt.serve.channel import Layout, Message
from perwatt.serve.loaded import Loaded, Run

# One batch runs, one is committed, one is being filled.
BUFFERS = 3
WARMUP_RUNS = 5
WARMUP_S = 0.1
MOST_WARMUP_RUNS = 30
# How long an engine thread waits awake for the others after a step. Here it waits for one whose core the server's own
# process has taken: the core on which it waits is better given to that process than kept.
BARRIER_US = "20"
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve batches until the server is gone."""
    connection, memory = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    connection.set_inheritable(False)
    os.set_inheritable(memory, False)
    settings.prefer("PERWATT_BARRIER_US", BARRIER_US)
    os.dup2(2, 1)  # native libraries print to descriptor 1
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the server is gone
        _serve(connection, memory)
    sys.stderr.flush()
    os._exit(0)  # native libraries that crash while they are unloaded have nothing left to say


def _serve(connection: socket.socket, memory: int) -> None:
    start = channel.receive(connection)
    if start is None:
        return
    request = start.content

    def tell(words: str) -> None:
        connection.sendall(Message(channel.PROGRESS, text=json.dumps(words).encode()).pack())

    if "module_path" in request:
        sys.path.insert(0, request["module_path"])
    try:
        module, _, function = request["target"].partition(":")
        loaded: Loaded = getattr(importlib.import_module(module), function)(request["arguments"], tell)
        layout = Layout(BUFFERS, max(loaded.runs), loaded.input, loaded.outputs)
        os.ftruncate(memory, layout.size_bytes)
        buffers = channel.attach(memory, layout)
        tell("warming up")
        # Not zeros: processors take less time and energy for them.
        buffers[0].images[...] = np.random.default_rng(0).standard_normal(buffers[0].images.shape, np.float32)
        durations = {size: _warm_up(run, buffers[0].images[:size], loaded) for size, run in loaded.runs.items()}
    except Exception as error:  # noqa: BLE001 whatever goes wrong at the start is the reason the server gives
        kind = type(error).__name__ if isinstance(error, PerwattError) else "EngineCrashed"
        words = str(error) if isinstance(error, PerwattError) else f"{type(error).__name__}: {error}"
        connection.sendall(Message(channel.FAILED, text=json.dumps([kind, words]).encode()).pack())
        return
    ready = {"layout": layout.to_json(), "durations_s": durations, "notes": loaded.notes}
    connection.sendall(Message(channel.READY, text=json.dumps(ready).encode()).pack())
    gc.collect()
    gc.freeze()
    while (message := channel.receive(connection)) is not None:
        if message.kind == channel.REPEAT:
            connection.sendall(_repeat(message, loaded, buffers[message.buffer]).pack())
        else:
            connection.sendall(_run(message, loaded, buffers[message.buffer]).pack())


def _run(message: Message, loaded: Loaded, buffer: channel.Buffer) -> Message:
    size, images = message.size, message.images
    before = time.perf_counter()
    try:
        answers = loaded.runs[size](buffer.images[:size])
        for place, answer in zip(buffer.outputs, answers, strict=True):
            place[:images] = answer[:images]
    except Exception as error:  # noqa: BLE001 an error of one batch must not end the process
        words = json.dumps(" ".join(f"{type(error).__name__}: {error}".split())[:1000]).encode()
        return Message(channel.ERROR, sequence=message.sequence, seconds=time.perf_counter() - before, text=words)
    return Message(channel.DONE, sequence=message.sequence, seconds=time.perf_counter() - before)


def _repeat(message: Message, loaded: Loaded, buffer: channel.Buffer) -> Message:
    """Run one size again and again for some time, for a meter outside; `images` of the answer counts the runs."""
    before = time.perf_counter()
    runs = 0
    while runs == 0 or time.perf_counter() - before < message.seconds:
        loaded.runs[message.size](buffer.images[: message.size])
        runs += 1
    return Message(channel.DONE, images=runs, sequence=message.sequence, seconds=time.perf_counter() - before)


def _warm_up(run: Run, images: np.ndarray, loaded: Loaded) -> list[float]:
    """Run one size until it is warm and return the durations, the very first left out."""
    answers = run(images)
    for facts, answer in zip(loaded.outputs, answers, strict=True):
        if answer.shape != (len(images), *facts.shape) or answer.dtype != facts.dtype:
            raise EngineRefused(
                f"output {facts.name!r}: expected {facts.dtype} {(len(images), *facts.shape)}, got {answer.dtype} "
                f"{answer.shape}; only networks whose outputs begin with the batch dimension can be served"
            )
    durations: list[float] = []
    begun = time.perf_counter()
    while len(durations) < WARMUP_RUNS or (
        len(durations) < MOST_WARMUP_RUNS and time.perf_counter() - begun < WARMUP_S
    ):
        before = time.perf_counter()
        run(images)
        durations.append(time.perf_counter() - before)
    return durations


if __name__ == "__main__":
    main()
