"""Meters that other programs serve, real threads and files: what they do wrong is a reason, never a crash or a 0."""

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from known_meters import meter as described

from perwatt.errors import MeterError
from perwatt.lab import meters
from perwatt.lab.meters import http, log
from perwatt.lab.meters.log import Log
from perwatt.lab.meters.meter import Found, Host, Reading
from perwatt.lab.meters.running import Running

SECOND = 10**9


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> int:
        return round(self.now_s * SECOND)


def host(clock: Clock) -> Host:
    return Host(clock_ns=clock, epoch_ns=lambda: 1_700_000_000 * SECOND + clock(), threads=False)


def write_rows(path: Path, clock: Clock, meter: Running, rows: list[str], step_s: float = 1.0) -> None:
    for row in rows:
        with path.open("a") as file:
            file.write(row + "\n")
        meter.poll()
        clock.now_s += step_s


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ("1020,fifty", r"line 22: expected watts from 0 to 100000, got '1020,fifty'"),
        ("1020,-3", "line 22: expected watts from 0"),
        ("1020,nan", "line 22: expected watts from 0"),
        (",50", "line 22: expected timestamp,watts"),
        ("50", "line 22: expected timestamp,watts"),
        ("soon,50", "line 22: expected a timestamp"),
        ("1018.5,50", "line 22: expected a later time than the line before"),
    ],
)
def test_a_log_is_refused_from_its_first_bad_line_on(tmp_path: Path, bad: str, told: str) -> None:
    path, clock = tmp_path / "watts.csv", Clock()
    path.write_text("time,watts\n")
    found = log.find(f"log:{path}", host(clock))
    assert found.open is not None
    meter = Running(found.meter, found.open(), host(clock))
    write_rows(path, clock, meter, [f"{1000 + index},50.0" for index in range(20)])
    clock.now_s += 0.5
    before = meter.energy(105 * SECOND, 115 * SECOND)
    assert before.joules == pytest.approx(500, rel=1e-3)
    assert "ahead of the meter's" in before.notes[-1] or "behind the meter's" in before.notes[-1]
    write_rows(path, clock, meter, [bad, "1021,50", "1022,50", "1023,50"])
    with pytest.raises(MeterError, match=told):
        meter.energy(118 * SECOND, 124 * SECOND)
    meter.close()


def test_a_log_that_has_bad_rows_or_is_not_there_is_closed(tmp_path: Path) -> None:
    missing = log.find(f"log:{tmp_path / 'none.csv'}", Host())
    assert missing.open is None
    assert "there is none" in (missing.reason or "")
    assert missing.remedy
    bad = tmp_path / "bad.csv"
    bad.write_text("2026-01-01T00:00:01,50\n2026-01-01T00:00:00,50\n")
    assert "line 2: expected a later time" in (log.find(f"log:{bad}", Host()).reason or "")


def test_a_log_may_be_a_pipe_with_times_as_people_write_them(tmp_path: Path) -> None:
    path, clock = tmp_path / "pipe", Clock()
    os.mkfifo(path)
    found = log.find(f"log:{path}", host(clock))
    assert found.open is not None
    source = found.open()
    assert isinstance(source, Log)
    writer = os.open(path, os.O_WRONLY)
    os.write(writer, b"2026-01-01T00:00:01Z;50.5\n2026-01-01T00:00:02Z;60\n2026-01-01T00:")
    assert [reading.value for reading in source.read(clock())] == [50.5, 60.0]
    os.write(writer, b"00:03Z;70\n")
    assert [reading.value for reading in source.read(clock())] == [70.0]
    assert source.read(clock()) == ()
    with pytest.raises(MeterError, match="2 batches of rows have arrived, 5 are needed"):
        source.offset()
    os.close(writer)
    source.close()


class Plug(BaseHTTPRequestHandler):
    """A smart plug; its address says how it answers."""

    def do_GET(self) -> None:
        if self.path == "/hang":
            time.sleep(0.5)
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        good = json.dumps({"meters": [{"power": "42.5", "label": "desk"}]})
        self.wfile.write(b"<html>hello</html>" if self.path == "/text" else good.encode())

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def plug() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Plug)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("/status#meters.0.label", "expected watts at meters.0.label, got 'desk'"),
        ("/status#meters.1.power", "expected meters.1.power, found no '1'"),
        ("/status#power", "found no 'power'"),
        ("/status", "expected a path to the watts after #"),
        ("/text#power", "expected JSON, got '<html>"),
        ("/missing#power", "404"),
        ("/hang#power", r"no answer within 0.1 s \(timed out\)"),
    ],
)
def test_a_plug_that_answers_nonsense_or_not_at_all_is_closed(
    plug: str, address: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "TIMEOUT_S", 0.1)
    found = http.find(plug + address, Host())
    assert found.open is None
    assert re.search(told, found.reason or ""), found.reason
    assert found.remedy


def test_a_plug_is_read_along_the_path(plug: str) -> None:
    found = http.find(f"{plug}/status#meters.0.power", Host())
    assert found.open is not None
    assert found.open().read(7)[0].value == 42.5
    assert found.meter.scope == "wall"


@pytest.mark.alone
def test_real_threads_follow_a_real_file_and_say_when_it_has_gone(tmp_path: Path) -> None:
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    begin = time.perf_counter()

    def joules() -> int:
        return int(50e6 * (time.perf_counter() - begin))

    for name, text in (("name", "package-0"), ("energy_uj", "1"), ("max_energy_range_uj", "262143328850")):
        (zone / name).write_text(f"{text}\n")

    def read(path: Path) -> str:
        text = path.read_text()
        return str(joules()) if path.name == "energy_uj" else text

    place = Host(root=tmp_path, read=read, library=lambda name: None)
    found = meters.discover(place)
    choice = meters.choose(found)
    assert choice.names == ("rapl:package-0",)
    with meters.open_meters(found, choice, place) as meter:
        start = meter.mark()
        time.sleep(0.3)
        end = meter.mark()
        energy = meter.energy(start, end)
        assert energy.joules == pytest.approx(50 * (end - start) * 1e-9, abs=energy.random_j + 1e-3)
        watts = meter.watts()
        assert watts == pytest.approx(50, rel=0.05)
        start = meter.mark()
        (zone / "energy_uj").unlink()
        time.sleep(0.3)
        end = meter.mark()
        with pytest.raises(MeterError, match=r"energy_uj: No such file or directory"):
            meter.energy(start, end)
    assert threading.active_count() < 10


def test_the_sum_of_two_meters_is_as_sure_as_both(tmp_path: Path) -> None:
    clock = Clock()
    place = host(clock)

    class Steady:
        """A counter of so many watts."""

        def __init__(self, watts: float) -> None:
            self.watts = watts

        def read(self, now_ns: int) -> list[Reading]:
            return [Reading(now_ns, self.watts * now_ns * 1e-9)]

        def offset(self) -> None:
            return None

        def notes(self) -> tuple[str, ...]:
            return ()

        def close(self) -> None:
            pass

    found = tuple(
        Found(
            replace(described(update_period_s=0.001, gain=0.1), name=name, covers=(name,)),
            open=lambda w=watts: Steady(w),
        )
        for name, watts in (("a", 30.0), ("b", 10.0))
    )
    with meters.open_meters(found, meters.Choice(("a", "b"), "asked for"), place) as both:
        assert both.meter.scope == "package"
        start = both.mark()
        clock.now_s += 2
        end = both.mark()
        energy = both.energy(start, end)
        assert energy.joules == pytest.approx(80)
        assert energy.gain == pytest.approx(0.1), "errors that meters have in common do not average out"
        assert both.watts() == pytest.approx(40)
