"""perwatt loadtest from the command line, against a small server of the protocol and against none."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripted_server import Reply, Server, serving

from perwatt import cli
from perwatt.lab.load import pictures
from perwatt.lab.load.check import check
from perwatt.lab.load.command import shown
from perwatt.lab.load.record_file import load
from perwatt.lab.load.target import Asking, address, prepare
from perwatt.lab.photographs import find_photographs

pytestmark = pytest.mark.alone  # rates are held to the clock

META = {"name": "cat", "platform": "x", "inputs": [{"name": "data", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]}


class Protocol:
    """What a server of the protocol says; a test may change its answers."""

    def __init__(self) -> None:
        self.paths: list[bytes] = []
        self.swap = False
        self.last = b""


def answer(state: Protocol, head: bytes, body: bytes) -> Reply:
    path = head.split(b" ")[1]
    state.paths.append(path)
    if path == b"/v2":
        return Reply(body=b'{"name": "tiny", "version": "1"}')
    if path == b"/v2/repository/index":
        return Reply(body=b'[{"name": "cat"}]')
    if path == b"/v2/models/cat":
        return Reply(body=json.dumps(META).encode())
    if path.endswith(b"/infer"):
        length = int(re.search(rb"inference-header-content-length: (\d+)", head.lower())[1])  # type: ignore[index]
        values = np.frombuffer(body[length:], "<f4")[:4]
        said = {"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": values.tolist()}]}
    else:
        said = {"labels": [{"label": "size", "index": 0, "score": len(body)}]}
    content = json.dumps(said).encode()
    content, state.last = (state.last if state.swap and state.last else content), content
    return Reply(body=content)


@pytest.fixture
def state() -> Protocol:
    return Protocol()


@pytest.fixture
def server(state: Protocol):  # type: ignore[no-untyped-def]
    with serving(lambda number, body: Reply(), lambda head, body: answer(state, head, body)) as running:
        yield running


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(3):
        pixels = np.random.RandomState(number).randint(0, 256, (40 + number, 50, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures, which take longer than the rest."""
    monkeypatch.setattr(pictures, "write", lambda record, path: ())


def run(server: Server, tmp_path: Path, *arguments: str) -> int:
    return cli.run(["loadtest", f"http://127.0.0.1:{server.port}", "--out", str(tmp_path / "out"), *arguments])


@pytest.mark.slow
def test_photographs_are_sent_checked_and_kept(
    server: Server, state: Protocol, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(server, tmp_path, "--concurrency", "3", "--seconds", "0.5", "--check", "--photos", str(photos)) == 0
    told = capsys.readouterr().out
    assert "each is its own request's" in told
    assert b"/v2/models/cat/classify" in state.paths
    (path,) = (tmp_path / "out").glob("*.json*")
    record = load(path)
    assert record.targets[0].server == "tiny 1"
    assert record.shared_machine
    assert cli.run(["check", str(path)]) == 0
    assert "VALID" in capsys.readouterr().out
    assert cli.run(["report", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["figures"]["requests"] > 10
    assert {each.suffix for each in (tmp_path / "out").iterdir()} == {".json", ".svg", ".png"}


@pytest.mark.usefixtures("undrawn")
def test_another_requests_answer_is_a_fault(
    server: Server,
    state: Protocol,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from perwatt.lab.load import loadtest

    learn = loadtest.asked_alone

    def then_swap(*arguments, **options):  # type: ignore[no-untyped-def]
        judge = learn(*arguments, **options)
        state.swap = True
        return judge

    monkeypatch.setattr(loadtest, "asked_alone", then_swap)
    options = ("--seconds", "0.7", "--tensor", "--check", "--json", "--photos", str(photos))
    assert run(server, tmp_path, "--rate", "60", *options) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["runs"][0]["figures"]["outcomes"]["stranger"] > 10


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_test_that_is_stopped_keeps_what_it_measured(
    server: Server, photos: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    url, options = f"http://127.0.0.1:{server.port}", ("--rate", "50", "--seconds", "300", "--photos", str(photos))
    command = (sys.executable, "-m", "perwatt", "loadtest", url, *options, "--out", str(tmp_path / "out"))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while server.requests < 30:  # a hanging test ends with the suite's own limit
            time.sleep(0.05)
        process.send_signal(sent)
        told, _ = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "stopped by Ctrl-C" in told
    (path,) = (tmp_path / "out").glob("*.json")
    record = load(path)
    assert record.partial
    assert check(record) == []
    assert record.runs[0].figures.outcomes["good"] > 10


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "one of --rate, --find-max and --concurrency"),
        (("--rate", "5", "--find-max"), "one of --rate"),
        (("--find-max",), "--p99 MS"),
        (("--rate", "-5"), "--rate"),
        (("--rate", "5", "--seconds", "0"), "--seconds"),
        (("--rate", "5", "--model", "dog"), "expected one of cat"),
        (("--rate", "5", "--photos", "/no/such/folder"), "check the path"),
    ],
)
def test_a_mistake_is_one_line(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], expected: str
) -> None:
    assert run(server, tmp_path, *arguments) == 2
    told = capsys.readouterr()
    assert expected in told.err
    assert told.err.startswith("perwatt: ")
    assert told.out == ""
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://user:word@host", "http://host:port"])
def test_a_url_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert cli.run(["loadtest", url, "--rate", "5", "--out", str(tmp_path)]) == 2
    assert "URL: expected http://HOST:PORT" in capsys.readouterr().err


def test_no_server_is_told_with_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["loadtest", "http://127.0.0.1:9", "--rate", "5", "--out", str(tmp_path)]) == 2
    assert "perwatt serve" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_a_token_is_sent_and_not_kept(server: Server, photos: Path, tmp_path: Path) -> None:
    options = ("--seconds", "0.2", "--token", "secret", "--photos", str(photos))
    assert run(server, tmp_path, "--concurrency", "1", *options) == 0
    (path,) = (tmp_path / "out").glob("*.json")
    assert "secret" not in path.read_text()
    words = shown(["loadtest", "http://a", "--token", "secret", "--token=secret", "--rate", "5"])
    assert words == ("perwatt", "loadtest", "http://a", "--token", "...", "--token=...", "--rate", "5")


def test_a_deadline_travels_in_the_header(server: Server) -> None:
    where = address(f"http://127.0.0.1:{server.port}")
    made = prepare(where, Asking(deadline_s=0.0504), find_photographs(None)[:1], 1)
    assert b"X-Request-Timeout-Ms: 50\r\n" in made.shots[0].data
    assert made.shots[0].data[made.shots[0].body_at - 4 :][:4] == b"\r\n\r\n"
