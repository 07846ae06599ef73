"""Engines that break the contract in one way each; a worker loads them as `module:lying_engines:CLASS`."""

import ctypes
import os
import sys
import time

import numpy as np

from perwatt.errors import EngineRefused
from perwatt.lab.engine import Job, Loaded


class Mean:
    """An honest engine: the mean of each channel of each image."""

    def load(self, job: Job) -> Loaded:
        return Loaded(version="0", precision=job.precision, options={"pid": str(os.getpid())})

    def run(self, images: np.ndarray) -> np.ndarray:
        return images.mean(axis=(2, 3), dtype=np.float64).astype(np.float32)

    def close(self) -> None:
        pass


class CrashInLoad(Mean):
    def load(self, job: Job) -> Loaded:
        print("about to read address zero", file=sys.stderr, flush=True)
        ctypes.string_at(0)
        raise AssertionError("unreachable")


class CrashInRun(Mean):
    runs = 0

    def run(self, images: np.ndarray) -> np.ndarray:
        self.runs += 1
        if self.runs > 3:
            ctypes.string_at(0)
        return super().run(images)


class HangInRun(Mean):
    runs = 0

    def run(self, images: np.ndarray) -> np.ndarray:
        self.runs += 1
        if self.runs > 1:
            time.sleep(600)
        return super().run(images)


class HangInLoadDeaf(Mean):
    """Hangs inside native code that holds Python's lock, so that no thread of the worker can react."""

    def load(self, job: Job) -> Loaded:
        ctypes.PyDLL(None).sleep(600)
        return super().load(job)


class Stale(Mean):
    """Answers with the previous question's answer."""

    last: np.ndarray | None = None

    def run(self, images: np.ndarray) -> np.ndarray:
        now = super().run(images)
        answer, self.last = (now if self.last is None else self.last), now
        return answer


class Zeros(Mean):
    def run(self, images: np.ndarray) -> np.ndarray:
        return np.zeros(images.shape[:2], np.float32)


class Permuted(Mean):
    """Gives each image the answer of its neighbour."""

    def run(self, images: np.ndarray) -> np.ndarray:
        return np.roll(super().run(images), 1, axis=0)


class Overwriting(Mean):
    """Allowed by the contract: one output array, written anew at every run."""

    def load(self, job: Job) -> Loaded:
        self.space = np.empty(job.input_shape[:2], np.float32)
        return super().load(job)

    def run(self, images: np.ndarray) -> np.ndarray:
        self.space[...] = super().run(images)
        return self.space


class WrongType(Mean):
    def run(self, images: np.ndarray) -> np.ndarray:
        return super().run(images).astype(np.float64)


class Exits(Mean):
    def run(self, images: np.ndarray) -> np.ndarray:
        print("leaving", file=sys.stderr, flush=True)
        os._exit(3)


class Raises(Mean):
    def run(self, images: np.ndarray) -> np.ndarray:
        raise ValueError("no such\nkernel")


class Refuses(Mean):
    def load(self, job: Job) -> Loaded:
        raise EngineRefused("Refuses: batch 2 is not supported; use 1")


class Noisy(Mean):
    """Prints to standard output as native libraries do: below Python, on file descriptor 1."""

    def run(self, images: np.ndarray) -> np.ndarray:
        os.write(1, b"progress 50 %\n" * 100)
        print("and through Python")
        return super().run(images)


class Spinning(Mean):
    """Leaves a thread that keeps computing for a while after each run, as rivals' thread pools do."""

    def run(self, images: np.ndarray) -> np.ndarray:
        import hashlib
        import threading

        threading.Thread(target=hashlib.pbkdf2_hmac, args=("sha256", b"a", b"b", 300_000), daemon=True).start()
        return super().run(images)
