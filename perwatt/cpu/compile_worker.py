"""Compile several modules at once in helper processes, since LLVM in one process compiles one at a time.

Helpers are fresh interpreters fed over pipes (a fork of a process with threads can hang): one request, one answer.
A message is its length in 8 bytes, a line of JSON, and bytes.
"""

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import IO, Any

from perwatt.cpu.compiler import Options, Target, compile_object
from perwatt.errors import EngineCrashed

Compiled = tuple[bytes, tuple[str, ...]]


def _send(pipe: IO[bytes], header: dict[str, Any], body: bytes) -> None:
    line = json.dumps(header).encode() + b"\n"
    pipe.write((len(line) + len(body)).to_bytes(8, "little") + line + body)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """Return the next message, or None at the end of the pipe."""
    prefix = pipe.read(8)
    if len(prefix) < 8:
        return None
    size = int.from_bytes(prefix, "little")
    data = pipe.read(size)
    if len(data) < size:
        return None
    line, _, body = data.partition(b"\n")
    return json.loads(line), body


def main() -> None:
    """Serve requests on standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which then closes the pipe
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while (message := _receive(requests)) is not None:
        header, source = message
        try:
            image, functions = compile_object(source.decode(), Target(**header["target"]), Options(**header["options"]))
        except RuntimeError as error:
            _send(answers, {"error": str(error)}, b"")
        else:
            _send(answers, {"functions": functions}, image)


class _Work:
    """Modules still to compile, and what came of the others; threads take from the one list."""

    def __init__(self, sources: Sequence[str], target: Target, options: Options) -> None:
        self.sources = sources
        self.target = target
        self.options = options
        self.lock = threading.Lock()
        # The longest first, so that no process is left with it at the end.
        self.waiting = sorted(range(len(sources)), key=lambda i: len(sources[i]))
        self.done: dict[int, Compiled] = {}
        self.errors: list[Exception] = []

    def take(self) -> int | None:
        with self.lock:
            return self.waiting.pop() if self.waiting and not self.errors else None

    def give_back(self, i: int) -> None:
        with self.lock:
            self.waiting.append(i)

    def feed(self, helper: "subprocess.Popen[bytes]") -> None:
        """Keep one helper busy (a thread of the parent)."""
        assert helper.stdin is not None
        assert helper.stdout is not None
        header = {"target": asdict(self.target), "options": asdict(self.options)}
        answered = False
        while (i := self.take()) is not None:
            try:
                _send(helper.stdin, header, self.sources[i].encode())
                answer = _receive(helper.stdout)
            except OSError:
                answer = None
            if answer is None and not answered:  # it never came to life: the parent does the work itself
                self.give_back(i)
                return
            if answer is None:
                self.errors.append(EngineCrashed(f"the compiler died on a module of {len(self.sources[i])} characters"))
                return
            answered = True
            facts, image = answer
            if "error" in facts:
                self.errors.append(RuntimeError(facts["error"]))
                return
            self.done[i] = (image, tuple(facts["functions"]))

    def compile_here(self) -> None:
        while (i := self.take()) is not None:
            self.done[i] = compile_object(self.sources[i], self.target, self.options)


def compile_objects(sources: Sequence[str], target: Target, options: Options, processes: int) -> list[Compiled]:
    """Return compile_object of each source, made by this process and up to processes - 1 helpers.

    Raises RuntimeError with LLVM's message on bad IR, EngineCrashed when a helper dies at work.
    """
    work = _Work(sources, target, options)
    start = f"import sys; sys.path[:] = {sys.path!r}; from perwatt.cpu.compile_worker import main; main()"
    helpers: list[subprocess.Popen[bytes]] = []
    feeders: list[threading.Thread] = []
    try:
        for _ in range(processes - 1 if sys.executable else 0):
            command = [sys.executable, "-c", start]
            try:
                helper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            except OSError:
                break  # no more processes to be had: those that run share the work
            helpers.append(helper)
            feeders.append(threading.Thread(target=work.feed, args=(helper,), daemon=True))
            feeders[-1].start()
        work.compile_here()
        for feeder in feeders:
            feeder.join()
        work.compile_here()  # what a helper gave back
    finally:
        for helper in helpers:
            helper.kill()  # idle by now, or not wanted after an error or Ctrl-C
        for feeder in feeders:
            feeder.join()
        for helper in helpers:
            for pipe in (helper.stdin, helper.stdout):
                with contextlib.suppress(OSError):  # what was not sent has nobody to read it
                    if pipe is not None:
                        pipe.close()
            helper.wait()
    if work.errors:
        raise work.errors[0]
    return [work.done[i] for i in range(len(sources))]
