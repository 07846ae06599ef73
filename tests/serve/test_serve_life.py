"""The life of `perwatt serve` as a process: ready, signals, drain, replacement, a model process that dies, examples."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perwatt import package as packages

ROOT = Path(__file__).parent.parent.parent
SHAPE = (3, 4, 4)
pytestmark = pytest.mark.slow


class Server:
    """A running server; what it says on stderr is kept."""

    def __init__(self, arguments: Sequence[str], **environment: str) -> None:
        command = [sys.executable, "-m", "perwatt", "serve", "--port", "0", "--meter", "none", *arguments]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        self.lines: list[str] = []
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    @property
    def said(self) -> str:
        return "\n".join(self.lines)

    def until(self, pattern: str, seconds: float = 120.0) -> "re.Match[str]":
        """Wait until it has said something."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.said)):
            assert time.monotonic() < end, f"never said {pattern!r}: {self.said}"
            if self.process.poll() is not None and not self.thread.is_alive():
                raise AssertionError(f"ended with {self.process.returncode}: {self.said}")
            time.sleep(0.01)
        return found

    def ready(self) -> "Server":
        self.url = self.until(r"ready in .* at (http://\S+?)(,|$)")[1]
        self.port = int(self.url.rpartition(":")[2])
        return self

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def ended(self, seconds: float = 30.0) -> int:
        code = self.process.wait(seconds)
        self.thread.join(10)
        return code

    def children(self) -> list[int]:
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in listed.split()]

    def get(self, path: str) -> int:
        return self.ask("GET", path)[0]

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        client.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        reply = client.getresponse()
        content = reply.read()
        client.close()
        kind = reply.headers.get("content-type", "")
        return reply.status, json.loads(content) if kind == "application/json" else content

    def infer(self, seed: int = 0, **headers: str) -> tuple[int, Any]:
        """Send one image to the null network, which gives back its first values."""
        image = np.random.default_rng(seed).standard_normal(SHAPE, np.float32)
        status, content = self.ask(
            "POST", "/v2/models/null-3x4x4/infer", image.tobytes(), inference_header_content_length="0", **headers
        )
        if status == 200:
            assert content.endswith(image.ravel()[:8].tobytes()), "an answer to another image"
        return status, content


@contextmanager
def server(*arguments: str, **environment: str) -> Iterator[Server]:
    made = Server(arguments, **environment)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
        made.process.wait(20)


def at_once(work: Any, count: int) -> tuple[list[threading.Thread], list[Any]]:
    """Run a function in threads; the list fills with what it returns."""
    found: list[Any] = []
    threads = [threading.Thread(target=lambda seed=seed: found.append(work(seed))) for seed in range(count)]
    for thread in threads:
        thread.start()
    return threads, found


def in_flight(made: Server, count: int) -> None:
    """Wait until most of so many requests are inside."""
    end = time.monotonic() + 60
    while True:
        page = made.ask("GET", "/metrics")[1].decode()
        if float(re.search(r"^perwatt_in_flight_requests (\S+)", page, re.MULTILINE)[1]) >= 0.6 * count:
            return
        assert time.monotonic() < end
        time.sleep(0.01)


def test_sigterm_drains_what_is_inside_and_ends_with_0() -> None:
    with server("--null", "3x4x4@150", "--p99", "60000", "--max-batch", "2", "--drain", "60") as made:
        made.ready()
        (model,) = made.children()
        threads, found = at_once(made.infer, 12)
        in_flight(made, 12)
        made.signal()
        assert int(made.until(r"draining: (\d+) requests inside")[1]) >= 3
        assert made.get("/v2/health/ready") == 503
        assert made.get("/v2/health/live") == 200
        status, content = made.infer(9)
        assert status == 503
        assert "shutting down" in content["error"]
        for thread in threads:
            thread.join(30)
        assert [status for status, _ in found] == [200] * 12
        assert made.ended() == 0
        assert made.lines[-1].endswith("drained")
        assert not Path(f"/proc/{model}").exists()


@pytest.mark.alone
def test_what_does_not_fit_into_the_drain_time_is_refused_and_a_second_signal_stops() -> None:
    with server("--null", "3x4x4@150", "--p99", "60000", "--max-batch", "1", "--drain", "0.4") as made:
        made.ready()
        threads, found = at_once(made.infer, 20)
        in_flight(made, 20)
        made.signal()
        for thread in threads:
            thread.join(30)
        statuses = [status for status, _ in found]
        assert set(statuses) <= {200, 503}
        assert statuses.count(503) >= 10  # 20 images are 3 s of work
        assert len(statuses) == 20
        assert made.ended() == 0
    with server("--null", "3x4x4@150", "--p99", "60000", "--max-batch", "1", "--drain", "60") as made:
        made.ready()
        (model,) = made.children()
        threads, found = at_once(_tolerant(made), 60)
        in_flight(made, 60)
        made.signal()
        made.until("draining")
        begun = time.monotonic()
        made.signal(signal.SIGINT)
        assert made.ended() == 1
        assert time.monotonic() - begun < 6  # and not the 9 s that 60 images take
        for thread in threads:
            thread.join(30)
        assert found.count(200) < 50
        end = time.monotonic() + 10
        while Path(f"/proc/{model}").exists():
            assert time.monotonic() < end
            time.sleep(0.02)


def _tolerant(made: Server) -> Any:
    def ask(seed: int) -> Any:
        try:
            return made.infer(seed)[0]
        except (OSError, http.client.HTTPException):
            return None

    return ask


def test_a_signal_while_loading_ends_with_0() -> None:
    with server("--null", "3x4x4@400") as made:
        made.until("warming up|compiling")
        made.signal()
        assert made.ended() == 0


def test_a_model_process_that_dies_costs_its_own_requests_and_is_started_again() -> None:
    with server("--null", "3x4x4@150", "--p99", "60000", "--max-batch", "1") as made:
        made.ready()
        (model,) = made.children()
        threads, found = at_once(made.infer, 8)
        in_flight(made, 8)
        os.kill(model, signal.SIGKILL)
        for thread in threads:
            thread.join(60)
        statuses = sorted(status for status, _ in found)
        assert statuses.count(503) >= 1
        assert set(statuses) <= {200, 503}
        assert made.get("/v2/health/live") == 200
        end = time.monotonic() + 30
        while made.infer()[0] != 200:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert made.children() != [model]
        made.signal()
        assert made.ended() == 0


@pytest.fixture(scope="module")
def lenets(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Return three versions of one small package."""
    return [packages.to_bytes(packages.built_in("lenet", version=version)) for version in ("1", "2", "3")]


def test_packages_are_replaced_without_a_lost_request_by_route_and_by_signal(
    lenets: list[bytes], tmp_path: Path
) -> None:
    path = tmp_path / "lenet.perwatt"
    path.write_bytes(lenets[0])
    picture = _photo()
    with server(str(tmp_path), "--p99", "30000", "--max-batch", "2", PERWATT_TOKEN="a long secret") as made:
        made.ready()
        key = {"authorization": "Bearer a long secret"}
        going, seen = True, []

        def client(_: int) -> None:
            while going:
                status, content = made.ask("POST", "/v2/models/lenet/classify", picture, **key)
                assert status == 200, content
                seen.append((content["model_version"], tuple(row["index"] for row in content["labels"])))

        threads, failures = at_once(client, 3)
        _replace(path, lenets[1])
        status, content = made.ask("POST", "/v2/repository/models/lenet/load", **key)
        assert (status, content) == (200, {"name": "lenet", "version": "2"})
        _replace(path, lenets[2])
        made.signal(signal.SIGHUP)
        made.until("lenet: version 3 serves now")
        path.write_bytes(lenets[2][:-100])  # damaged: the old one serves on
        made.signal(signal.SIGHUP)
        made.until("not replaced, the old one serves on")
        time.sleep(0.3)
        going = False
        for thread in threads:
            thread.join(60)
        assert failures == [None] * 3  # no thread ended by an assertion
        assert {version for version, _ in seen} == {"1", "2", "3"}
        assert len({classes for _, classes in seen}) == 1  # one network under three versions: one answer
        assert seen[-1][0] == "3"
        end = time.monotonic() + 20
        while len(made.children()) > 1:  # the replaced ones have gone
            assert time.monotonic() < end
            time.sleep(0.05)
        made.signal()
        assert made.ended() == 0


def test_the_example_clients_and_the_demo(tmp_path: Path) -> None:
    skimage_data = pytest.importorskip("skimage.data")
    from PIL import Image

    cat = tmp_path / "cat.jpg"
    Image.fromarray(skimage_data.chelsea()).save(cat)
    with server("--demo", "--max-batch", "1", "--p99", "30000", "--token", "a long secret") as made:
        made.ready()
        client = [sys.executable, "examples/client.py", made.url, "--token", "a long secret"]
        shown = subprocess.run([*client, str(cat)], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert shown.returncode == 0, shown.stderr
        assert len(shown.stdout.splitlines()) == 5
        name = made.ask("POST", "/v2/repository/index", authorization="Bearer a long secret")[1][0]["name"]
        if name == "efficientnet-lite0":  # the trained one
            assert "cat" in shown.stdout.splitlines()[0]
        shown = subprocess.run(
            [*client, "--tensor", "1x3x224x224"], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert shown.returncode == 0, shown.stderr
        shown = subprocess.run(
            ["sh", "examples/client.sh", str(cat), made.url], cwd=ROOT, capture_output=True, text=True, timeout=120,
            env={**os.environ, "TOKEN": "a long secret"},
        )  # fmt: skip
        assert shown.returncode == 0, shown.stderr
        assert '"labels":[{' in shown.stdout
        shown = subprocess.run(
            [*client[:-1], "wrong one", str(cat)], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert shown.returncode == 1
        assert "401" in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "expected a package to serve"),
        (["nothing.perwatt"], "nothing.perwatt"),
        (["--null", "3xx4"], "shape of one image"),
        (["--null", "3x4", "--null", "3x4"], "different names"),
        (["--null", "3x4", "--host", "0.0.0.0"], "expected a token"),
        (["--null", "3x4", "--token", "short"], "at least 8 characters"),
        (["--null", "3x4", "--objective", "speed"], "latency, throughput, energy"),
        (["--null", "3x4", "--objective", "energy"], "meter"),
        (["--null", "3x4", "--precision", "int1"], "fp32, fp16, bf16, auto"),
        (["--null", "3x4", "--host", "example.org"], "expected an address"),
        (["tests"], "expected packages in this folder"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(arguments: list[str], words: str) -> None:
    with server(*arguments) as made:
        assert made.ended(60) == 2, made.said
    told = [line for line in made.lines if words in line]
    assert len(told) == 1, made.said
    assert "Traceback" not in made.said


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(".fresh")
    fresh.write_bytes(content)
    fresh.replace(path)


def _photo() -> bytes:
    from http_harness import photo

    return photo(60, 50)
