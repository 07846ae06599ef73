"""The server's figures, each as a committed Record: `python benchmarks/serving.py null|saturation|rival|overload|soak`.

Server and load generator share the machine's cores. `--quick` is a short form for tests: it shows that everything
works and proves no figure. A Record holds every request, and `perwatt check` computes its claims again.

  null        the server's own cost: a network that does nothing
  saturation  served images/s against the engine's own speed, taking turns
  rival       the highest rate at a p99 limit against ONNX Runtime behind LitServe's fixed window; that server runs in
              an environment of its own: python -m venv V && V/bin/pip install litserve onnxruntime numpy
  overload    three times as many requests as it can answer, then few: goodput, memory, recovery; the standard form is
              --network googlenet, squeezenet1.1 the harder one: its tensors are as large and come faster
  soak        photographs among corrupt ones, clients that leave, slow senders, bodies too large
"""

import argparse
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hostile
import numpy as np
from launched import InProcess, Launched, Watch, launched, package_of, perwatt_serve

from perwatt import package as packages
from perwatt.lab.bench import Progress
from perwatt.lab.load import claims, pictures, terminal
from perwatt.lab.load.answers import Judge
from perwatt.lab.load.check import require_valid
from perwatt.lab.load.record import Checking, LoadRecord, Series, Target
from perwatt.lab.load.record_file import save
from perwatt.lab.load.runs import Bench, Settings, asked_alone, closed_run, open_run
from perwatt.lab.load.search import MOST_PROBES, RESOLUTION, find_max
from perwatt.lab.load.shot import post
from perwatt.lab.load.target import Asking, Prepared, address, prepare, shot_facts, tensors
from perwatt.lab.photographs import find_photographs
from perwatt.lab.terminal import console

NULL_LARGE, NULL_SMALL = "3x224x224", "3x32x32"
LANES_NULL = 16
MOST_BATCH = 16
CHECK_TOLERANCE = 1e-3
PATIENCE_S = 10.0


@dataclass(frozen=True)
class Given:
    """What the command line said."""

    what: str
    quick: bool
    seconds: float | None
    rounds: int | None
    network: str
    p99_s: float
    rival_python: Path
    windows_ms: tuple[float, ...]
    resolution: float
    seed: int

    def lasting(self, usual_s: float, quick_s: float) -> float:
        """Return how long a run takes."""
        return self.seconds or (quick_s if self.quick else usual_s)


def tensors_of(bench: Bench, server: Launched, model: str | None, seed: int, name: str | None = None) -> Prepared:
    """Return requests with tensors for one model of a perwatt server, or for its only one; the bench keeps them."""
    asking = Asking(models=() if model is None else (model,), tensors=True)
    made = prepare(address(server.url), asking, find_photographs(None), seed, name or model or "server")
    target = made.target.model_copy(update={"options": {**made.target.options, **server.options}})
    made = Prepared(made.endpoint, made.shots, target, made.photographs)
    bench.add_target(made)
    return made


def null(bench: Bench, given: Given) -> None:
    """The server's own cost, on a network that does nothing."""
    seconds, rounds = given.lasting(10, 1), given.rounds or (1 if given.quick else 3)
    with launched(perwatt_serve("--null", NULL_LARGE, "--null", NULL_SMALL), {"network": "null"}) as server:
        large = tensors_of(bench, server, f"null-{NULL_LARGE}", given.seed)
        small = tensors_of(bench, server, f"null-{NULL_SMALL}", given.seed)
        judges = {}
        for prepared in (large, small):
            settings = Settings(seconds=seconds, seed=given.seed)
            judges[prepared.target.name] = asked_alone(prepared, settings, bench, CHECK_TOLERANCE, keep=True)
        for number in range(rounds):
            settings = Settings(seconds=seconds, seed=given.seed + number, round=number)
            for label, prepared, lanes in (
                (f"{NULL_LARGE}, one at a time", large, 1),
                (f"{NULL_LARGE}, saturated", large, 8),
                (f"{NULL_SMALL}, saturated", small, LANES_NULL),
            ):
                closed_run(bench, prepared, settings, lanes, judges[prepared.target.name], label=label)
    bench.claims += [
        claims.claim("p50 of a request at concurrency 1, 600 kB", "p50 latency", [f"{NULL_LARGE}, one at a time"],
                     "<=", 0.002),
        claims.claim("3x32x32 tensors per second", "answers per second", [f"{NULL_SMALL}, saturated"], ">=", 1500),
        claims.claim("3x224x224 tensors per second", "answers per second", [f"{NULL_LARGE}, saturated"], ">=", 400),
    ]  # fmt: skip


def saturation(bench: Bench, given: Given) -> None:
    """Served images/s at saturation against the engine in process, taking turns."""
    seconds, rounds = given.lasting(8, 1), given.rounds or (2 if given.quick else 8)
    package = package_of(given.network)
    lanes = 3 * MOST_BATCH
    command = perwatt_serve(str(package), "--p99", "5000", "--objective", "throughput", "--max-batch", str(MOST_BATCH))
    with launched(command, {"network": given.network}) as server, InProcess(package, batches()) as engine:
        prepared = tensors_of(bench, server, packages.read(package).name, given.seed)
        bench.notes.append(f"engine in process: fastest at batch {engine.speeds['batch']} of {engine.speeds['speeds']}")
        judge = by_the_package(bench, package, prepared)
        closed_run(bench, prepared, Settings(min(seconds, 3.0), given.seed), lanes, judge, label="learning")
        times, speeds = [], []
        for number in range(rounds):
            order: list[Callable[[], None]] = [
                lambda: (speeds.append(engine.images_per_s(seconds)), times.append(bench.now_s()))[0],
                lambda number=number: (
                    closed_run(bench, prepared, Settings(seconds, given.seed + number, round=number), lanes, judge,
                               label="served"),
                )[0],
            ]  # fmt: skip
            bench.report(Progress(f"round {number + 1} of {rounds}", number / rounds, (rounds - number) * 2 * seconds))
            for step in order if number % 2 == 0 else reversed(order):
                step()
        bench.series.append(
            Series(name="engine in process", unit="images/s", times_s=tuple(times), values=tuple(speeds),
                   slope_per_s=None)
        )  # fmt: skip
    bench.claims += [
        claims.claim(f"{given.network} served at saturation over the engine in process", "ratio to series",
                     ["served", "engine in process"], ">=", 0.85),
        claims.claim("wrong answers", "wrong answers", ["served", "learning"], "<=", 0),
    ]  # fmt: skip


def by_the_package(bench: Bench, package: Path, prepared: Prepared) -> Judge:
    """Return a judge that expects what the package answers in this process, image by image, without a server."""
    opened = packages.read(package)
    model = packages.open(opened, 1)
    shape = next(iter(model.inputs.values())).shape
    judge = Judge(len(prepared.shots), CHECK_TOLERANCE)
    for number, shot in enumerate(prepared.shots):
        tensor = np.frombuffer(shot.data[-4 * int(np.prod(shape)) :], "<f4").reshape(shape)
        judge.give(number, [np.asarray(model(tensor))])
    bench.checking = Checking(
        source="the package's own run", tolerance=CHECK_TOLERANCE, shots=judge.known(), distinct=judge.distinct()
    )
    return judge


def batches() -> list[int]:
    """Return the batch sizes that a server of MOST_BATCH has."""
    return [1 << power for power in range(MOST_BATCH.bit_length()) if 1 << power <= MOST_BATCH]


def rival(bench: Bench, given: Given) -> None:
    """The highest rate at a p99 limit: perwatt against LitServe with the best of several windows."""
    if not given.rival_python.exists():
        raise SystemExit(f"{given.rival_python}: expected the rival's Python, there is none; see the head of this file")
    seconds = given.lasting(20, 2)
    package = package_of(given.network)
    how = packages.read(package).preprocessing
    network = package.with_suffix(".onnx")
    network.write_bytes(packages.read(package).model)
    settings = Settings(seconds=seconds, seed=given.seed, limit_s=given.p99_s)

    def ours() -> Prepared:
        return tensors_of(bench, server, packages.read(package).name, given.seed, "perwatt")

    def search(prepared: Prepared) -> None:
        judge = asked_alone(prepared, settings, bench, CHECK_TOLERANCE, keep=True)
        find_max(
            bench,
            prepared.target.name,
            settings,
            lambda probe, rate, label, give_up: open_run(
                bench, prepared, probe, rate, judge, label=label, give_up=give_up
            ),
            lambda brief, lanes: closed_run(bench, prepared, brief, lanes, judge, label="saturation"),
            most_probes=2 if given.quick else MOST_PROBES,
            resolution=given.resolution,
        )

    command = perwatt_serve(str(package), "--p99", f"{1000 * given.p99_s:g}", "--max-batch", str(MOST_BATCH))
    with launched(command, {"network": given.network}) as server:
        search(ours())
    names = []
    for window_ms in given.windows_ms[:1] if given.quick else given.windows_ms:
        words = (str(given.rival_python), str(Path(__file__).with_name("rival_server.py")), str(network))
        options = ("--max-batch", str(MOST_BATCH), "--window-ms", f"{window_ms:g}")
        names.append(f"litserve {window_ms:g} ms")
        with launched((*words, *options), {"network": given.network, "window": f"{window_ms:g} ms"}) as other:
            search(raw_tensors(bench, other, (how.channels, *how.size), given.seed, names[-1]))
    found = {each.target: each.held or 0.0 for each in bench.searches}
    best = max(names, key=lambda name: found[name])
    told = f"{given.network}: rate at a p99 of {1000 * given.p99_s:g} ms over that of the best window ({best})"
    bench.claims.append(claims.claim(told, "ratio of held rates", ["perwatt", best], ">=", 1.5))


def raw_tensors(bench: Bench, server: Launched, shape: tuple[int, ...], seed: int, name: str) -> Prepared:
    """Return requests with bare float32 bytes for the rival, made from the same photographs."""
    where = address(f"{server.url}/predict")
    same = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, *shape]}]}
    made, photographs = tensors(same, find_photographs(None), seed)
    shots = tuple(
        post(where.path, where.host, np.ascontiguousarray(each, "<f4").tobytes(), name=f"tensor {number}", model=name)
        for number, each in enumerate(made)
    )
    said = server.log.read_text(errors="replace")
    target = Target(
        name=name,
        url=where.url,
        server=said[said.find("(") + 1 : said.find(")")],
        payload="tensors",
        options=dict(server.options),
        shots=tuple(map(shot_facts, shots)),
    )
    prepared = Prepared(where.endpoint, shots, target, photographs)
    bench.add_target(prepared)
    return prepared


def overload(bench: Bench, given: Given) -> None:
    """Three times capacity for a minute, then half of it; the capacity is measured before and behind.

    Capacity is what it answers when every deadline is far, so that batches are as large as pays.
    """
    seconds, after_s = given.lasting(60, 4), 4.0 if given.quick else 10.0
    limit_ms = f"{1000 * given.p99_s:g}"
    command = perwatt_serve(*served(given.network), "--p99", limit_ms, "--max-batch", str(MOST_BATCH))
    with (
        launched(command, {"network": given.network, "p99 limit": f"{limit_ms} ms"}) as server,
        Watch(server, bench.now_s, 0.25) as watch,
    ):
        prepared = tensors_of(bench, server, None, given.seed, given.network)
        judge = asked_alone(prepared, Settings(seconds, given.seed), bench, CHECK_TOLERANCE, keep=True)
        brief = Settings(2.0 if given.quick else 15.0, given.seed)
        patient = patiently(bench, prepared, server, given.seed)
        closed_run(bench, patient, brief, 2 * MOST_BATCH, judge, label="learning")
        capacity = closed_run(bench, patient, brief, 2 * MOST_BATCH, judge, label="capacity")
        rate = max(2.0, capacity.figures.answers_per_s.value)
        settings = Settings(seconds, given.seed, limit_s=given.p99_s)
        open_run(bench, prepared, settings, 3 * rate, judge, label="overload")
        settings = Settings(after_s, given.seed + 1, limit_s=given.p99_s)
        open_run(bench, prepared, settings, 0.5 * rate, judge, label="after")
        # Once more: on a machine that others use, what it could do before says little of a minute later.
        closed_run(bench, patient, brief, 2 * MOST_BATCH, judge, label="capacity")
    bench.series += watch.series(prepared.target.name)
    model = prepared.target.name
    bench.claims += [
        claims.claim("goodput at 3 times capacity over capacity", "ratio of goodput to rate", ["overload", "capacity"],
                     ">=", 0.9),
        claims.claim("p99 of admitted requests", "p99 latency", ["overload"], "<=", given.p99_s),
        claims.claim("requests without answer or refusal", "not answered", ["overload", "after"], "<=", 0),
        claims.claim("wrong answers", "wrong answers", ["overload", "after"], "<=", 0),
        claims.claim("recovery after the overload", "recovery", ["overload", "after"], "<=", 2.0),
        claims.claim("growth of memory in ten minutes, of its median", "growth in ten minutes", [f"{model}, memory"],
                     "<=", 0.05),
    ]  # fmt: skip


def served(network: str) -> tuple[str, ...]:
    """Return what `perwatt serve` is told: a built-in network's package, or null:3x32x32@5, which sleeps 5 ms."""
    if network.startswith("null:"):
        return "--null", network.removeprefix("null:")
    return (str(package_of(network)),)


def patiently(bench: Bench, prepared: Prepared, server: Launched, seed: int) -> Prepared:
    """Return the same requests with a deadline that none misses: what they are answered at is the capacity."""
    asking = Asking(tensors=True, deadline_s=PATIENCE_S)
    made = prepare(address(server.url), asking, find_photographs(None), seed, f"{prepared.target.name}, patient")
    bench.add_target(made)
    return made


def soak(bench: Bench, given: Given) -> None:
    """Ten minutes of photographs, a fifth of the clients hostile or clumsy; each answer against its own image."""
    seconds = given.lasting(600, 8)
    package = package_of(given.network)
    command = perwatt_serve(str(package), "--p99", f"{1000 * given.p99_s:g}", "--max-batch", str(MOST_BATCH))
    with (
        launched(command, {"network": given.network}) as server,
        Watch(server, bench.now_s, 0.25 if given.quick else 2.0) as watch,
    ):
        name = packages.read(package).name
        photos = find_photographs(None)
        made = prepare(address(server.url), Asking(models=(name,)), photos, given.seed, name)
        good = len(made.shots)
        shots = (*made.shots, *hostile.shots(made.shots[0], made.shots, name, given.seed))
        target = made.target.model_copy(
            update={"shots": tuple(map(shot_facts, shots)), "options": dict(server.options)}
        )
        plain = made
        prepared = Prepared(made.endpoint, shots, target, made.photographs)
        bench.add_target(prepared)
        judge = asked_alone(plain, Settings(seconds, given.seed), bench, CHECK_TOLERANCE, keep=True)
        assert judge is not None
        as_the_package_says(bench, package, judge, plain)
        judge = judge.extended([hostile.original(shots, number) for number in range(good, len(shots))])
        brief = Settings(2.0 if given.quick else 10.0, given.seed)
        learned = closed_run(bench, prepared_of(prepared, good), brief, 2, judge, label="learning")
        rate = max(1.0, 0.5 * learned.figures.answers_per_s.value)
        weights = [0.8 / good] * good + [0.2 / (len(shots) - good)] * (len(shots) - good)
        settings = Settings(seconds, given.seed, timeout_s=15.0)
        open_run(bench, prepared, settings, rate, judge, label="soak", weights=weights)
    bench.series += watch.series(name)
    bench.claims += [
        claims.claim("requests without answer, refusal or close", "not answered", ["soak"], "<=", 0),
        claims.claim("wrong answers", "wrong answers", ["soak"], "<=", 0),
        claims.claim("answers of an unexpected kind", "unexpected answers", ["soak"], "<=", 0),
        claims.claim("growth of memory in ten minutes, of its median", "growth in ten minutes", [f"{name}, memory"],
                     "<=", 0.02),
        claims.claim("growth of open files in ten minutes, of their median", "growth in ten minutes",
                     [f"{name}, open files"], "<=", 0.02),
    ]  # fmt: skip


def prepared_of(prepared: Prepared, count: int) -> Prepared:
    """Return the same target with its first shots only, which keeps their numbers."""
    return Prepared(prepared.endpoint, prepared.shots[:count], prepared.target, prepared.photographs)


def as_the_package_says(bench: Bench, package: Path, judge: Judge, prepared: Prepared) -> None:
    """Hold the server's answers, asked alone, to the package's own run in this process."""
    opened = packages.read(package)
    model = packages.open(opened, 1)
    for number, shot in enumerate(prepared.shots):
        expected = judge.expected[number]
        output = np.asarray(model(packages.preprocess(shot.data[shot.body_at :], opened.preprocessing)[np.newaxis]))
        best = int(output.ravel().argmax())
        said = max(expected.scores, key=lambda key: expected.scores[key]) if expected and expected.scores else ""
        if said.partition(":")[0] != str(best):
            raise SystemExit(f"{shot.name}: the server says class {said}, the package itself {best}")
    bench.notes.append(f"the classes of all {len(prepared.shots)} photographs, asked alone, are those of the package")


SUBJECTS: dict[str, Callable[[Bench, Given], None]] = {
    "null": null,
    "saturation": saturation,
    "rival": rival,
    "overload": overload,
    "soak": soak,
}


def tell(progress: Progress) -> None:
    """Say where the benchmark stands, a line a step."""
    print(f"\r{100 * progress.done:3.0f}%  {progress.text:60}", end="", file=sys.stderr, flush=True)


def run(given: Given) -> LoadRecord:
    """Measure and return the Record, whose figures follow from its samples."""
    bench = Bench(given.seed, tell, ("python", "benchmarks/serving.py", *sys.argv[1:]))
    SUBJECTS[given.what](bench, given)
    print(file=sys.stderr)
    record = bench.record()
    require_valid(record, given.what)
    return record


def main() -> None:
    """Read the command line, measure, keep and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=SUBJECTS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--network", default="squeezenet1.1")
    parser.add_argument("--p99", type=float, default=100.0, help="ms")
    parser.add_argument("--rival-python", type=Path, default=Path(".venv-rival/bin/python"))
    parser.add_argument("--windows", default="1,5,20", help="of LitServe, ms")
    parser.add_argument("--resolution", type=float, default=RESOLUTION, help="of the search for the highest rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("records"))
    words = parser.parse_args()
    given = Given(
        what=words.what,
        quick=words.quick,
        seconds=words.seconds,
        rounds=words.rounds,
        network=words.network,
        p99_s=words.p99 / 1000,
        rival_python=words.rival_python,
        windows_ms=tuple(float(word) for word in words.windows.split(",")),
        resolution=words.resolution,
        seed=words.seed,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # servers that were started end with this
    record = run(given)
    path = save(record, words.out)
    terminal.show(record, console(), record_path=path, pictures=pictures.write(record, path) if not given.quick else ())
    if any(claim.met is False for claim in record.claims):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
