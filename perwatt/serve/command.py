"""`perwatt serve`: from the words of the command line to a running server."""

import sys
from dataclasses import dataclass
from pathlib import Path

from perwatt import package as packages
from perwatt.errors import InputError
from perwatt.machine import this_machine
from perwatt.serve.batcher import Limits
from perwatt.serve.energy import Joules
from perwatt.serve.latency import OBJECTIVES, Objective
from perwatt.serve.opening import EngineSettings
from perwatt.serve.server import ServeRequest, serve


@dataclass(frozen=True)
class Serving:
    """What the command line was given."""

    packages: tuple[Path, ...]
    nulls: tuple[str, ...]
    demo: bool
    p99_ms: float
    objective: str
    host: str
    port: int
    grpc_port: int | None
    token: str | None
    max_batch: int
    queue: int
    precision: str
    tune_limit_s: float
    threads: int | None
    drain_s: float
    unproven: bool


def run_server(given: Serving, energy: Joules | None = None) -> int:
    """Serve until a signal and return the exit code. Raises InputError for words that contradict each other."""
    if not given.packages and not given.nulls and not given.demo:
        raise InputError("expected a package to serve, got none; make one with perwatt package, or try --demo")
    objectives: dict[str, Objective] = {name: name for name in OBJECTIVES}
    if given.objective not in objectives:
        raise InputError(f"objective: expected one of {', '.join(OBJECTIVES)}, got {given.objective!r}")
    if given.precision not in packages.PRECISIONS:
        raise InputError(f"precision: expected one of {', '.join(packages.PRECISIONS)}, got {given.precision!r}")
    paths = (*given.packages, packages.demo(tell=tell)) if given.demo else given.packages
    request = ServeRequest(
        packages=paths,
        nulls=given.nulls,
        host=given.host,
        port=given.port,
        grpc_port=given.grpc_port,
        token=given.token,
        decode_threads=this_machine().cores,
        deadline_s=given.p99_ms / 1000,
        drain_s=given.drain_s,
        engine=EngineSettings(
            max_batch=given.max_batch,
            precision=given.precision,
            threads=given.threads,
            tune_limit_s=given.tune_limit_s,
            unproven=given.unproven,
        ),
        batching=Limits(
            max_batch=given.max_batch,
            queue_images=max(given.queue, given.max_batch),
            objective=objectives[given.objective],
        ),
        energy=energy,
    )
    return serve(request, tell)


def tell(words: str) -> None:
    """Say what goes on, a line on stderr."""
    print(f"perwatt: {words}", file=sys.stderr, flush=True)
