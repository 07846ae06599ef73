"""The status page: offline, under a strict policy, and its figures against NumPy's."""

import re
from html.parser import HTMLParser
from importlib import resources

import numpy as np
import pytest
from http_harness import bench, json_body, tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from perwatt.errors import MeterError
from perwatt.lab.meters.meter import NONE, Energy
from perwatt.lab.meters.total import PATIENCE_S, Total
from perwatt.serve.app import PAGE_FILES, end_second
from perwatt.serve.energy import shared_out
from perwatt.serve.traffic import KEPT_S, WINDOW_S, Traffic

FILES = {
    name: resources.files("perwatt.serve").joinpath("status", name).read_text() for name in ["index.html", *PAGE_FILES]
}


def test_the_policy_allows_only_the_page_s_own_files() -> None:
    made = bench()
    page = made.call("GET", "/")
    assert page.status == 200
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    for name, kind in PAGE_FILES.items():
        reply = made.call("GET", f"/status/{name}")
        assert (reply.status, reply.headers["content-type"]) == (200, kind)
        assert reply.body.decode() == FILES[name]


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    asked: list[str] = []

    class Page(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            found = dict(attributes)
            assert tag != "style"
            assert tag != "script" or found["src"]
            assert not any(name == "style" or name.startswith("on") for name in found)
            asked.extend(value or "" for name, value in attributes if name in ("src", "href"))

    Page().feed(FILES["index.html"])
    assert not re.search(r"<script[^>]*>[^<]", FILES["index.html"])
    assert asked
    assert all(address.startswith("/") and not address.startswith("//") for address in asked)
    for name, text in FILES.items():
        addresses = set(re.findall(r"https?://[^\s\"']+", text)) - {"http://www.w3.org/2000/svg"}  # a name, no address
        assert not addresses, name
        assert "@import" not in text
        assert "url(" not in text
    script = FILES["page.js"]
    assert not re.search(r"innerHTML|outerHTML|document\.write|eval\(|new Function|insertAdjacentHTML", script)
    assert not re.search(r"\.style\b|setAttribute\(\"style", script)


def test_every_element_the_script_asks_for_is_on_the_page() -> None:
    asked = set(re.findall(r'byId\("([a-z0-9-]+)"\)', FILES["page.js"])) | set(
        re.findall(r'chart\("([a-z]+)"', FILES["page.js"])
    )
    there = set(re.findall(r'id="([a-z0-9-]+)"', FILES["index.html"]))
    assert asked <= there


def test_every_figure_the_script_reads_is_sent() -> None:
    made = bench()
    made.call("POST", "/v2/models/sums/infer", json_body(tensors()))
    end_second(made.front, 3)
    figures = made.call("GET", "/status/figures").json
    (_, second), about = figures["seconds"][-1], figures["about"]
    script = FILES["page.js"]
    assert set(re.findall(r"\b(?:last|second)\.([a-z_]+)\b", script)) <= set(second) | {"id"}
    assert set(re.findall(r"\beach\.([a-z_0-9]+)\b", script)) <= set(second["models"]["sums"])
    assert set(re.findall(r"\babout\.([a-z_]+)\b", script)) <= set(about) | {"scope"}
    assert second["models"]["sums"]["requests"] == 1
    assert second["connections"] == 3


@given(st.lists(st.floats(2e-4, 50.0), min_size=1, max_size=300))
@settings(max_examples=60, deadline=None)
def test_percentiles_are_right_to_six_percent(durations: list[float]) -> None:
    traffic = Traffic()
    traffic.of("m").durations_s.extend(durations)
    traffic.end_second({"m": {}}, {})
    figures = traffic.seconds[-1][1]["models"]["m"]
    for name, share in (("p50_ms", 50), ("p99_ms", 99)):
        exact = 1e3 * float(np.percentile(durations, share, method="inverted_cdf"))
        # Buckets are 10 ** (1 / 40) apart, and their middle is told.
        assert figures[name] == pytest.approx(exact, rel=0.031)


def test_windows_forget_and_what_is_kept_is_bounded() -> None:
    traffic = Traffic()
    traffic.of("m").durations_s.append(5.0)
    traffic.of("m").batches[4] += 1
    for _ in range(WINDOW_S):
        traffic.end_second({"m": {}}, {})
    assert traffic.seconds[-1][1]["models"]["m"]["batches"] == {"4": 1}
    assert traffic.seconds[-1][1]["models"]["m"]["p50_ms"] == pytest.approx(5000, rel=0.031)
    traffic.end_second({"m": {}}, {})
    assert traffic.seconds[-1][1]["models"]["m"]["p50_ms"] is None
    for _ in range(KEPT_S):
        traffic.end_second({}, {})
    assert len(traffic.seconds) == KEPT_S
    assert not traffic.models  # a package that has gone
    numbers = [number for number, _ in traffic.since(0)]
    assert numbers == list(range(numbers[0], numbers[0] + KEPT_S))
    assert [number for number, _ in traffic.since(numbers[-2])] == numbers[-1:]


def test_the_pace_follows_what_is_answered_and_idle_seconds_say_nothing() -> None:
    traffic = Traffic()
    assert traffic.wait_s(5) is None
    for _ in range(30):
        traffic.of("m").requests = 1000
        traffic._ended_s = None  # as if each second lasted one
        traffic.end_second({"m": {}}, {})
    assert traffic.wait_s(500) == pytest.approx(0.5, rel=0.01)
    traffic.end_second({"m": {}}, {})
    assert traffic.wait_s(500) == pytest.approx(0.5, rel=0.01)


@given(
    joules=st.floats(0, 1e4),
    lasted=st.floats(0.1, 10),
    used=st.dictionaries(st.text(min_size=1), st.floats(0, 20), max_size=5),
)
@settings(max_examples=100, deadline=None)
def test_joules_are_shared_out_whole(joules: float, lasted: float, used: dict[str, float]) -> None:
    parts = shared_out(joules, lasted, used)
    assert sum(parts.values()) == pytest.approx(joules, abs=1e-6)
    assert min(parts.values()) >= -1e-9
    assert set(parts) == set(used) | {""}
    if len(used) == 2:
        (first, second), (a, b) = used.values(), [parts[name] for name in used]
        assert a * second == pytest.approx(b * first, abs=1e-3)


class Plug:
    """A meter of 20 W that may be lost."""

    meter = NONE

    def __init__(self) -> None:
        self.now_s, self.lost = 0.0, False

    def mark(self) -> int:
        return int(1e9 * self.now_s)

    def energy(self, start_ns: int, end_ns: int) -> Energy:
        if self.lost:
            raise MeterError("gone")
        seconds = (end_ns - start_ns) * 1e-9
        return Energy(20 * seconds, 0.0, 0.0, seconds)


def test_the_total_of_a_meter_only_grows_and_catches_up() -> None:
    plug = Plug()
    total = Total(plug)  # type: ignore[arg-type]
    assert total() == 0
    plug.now_s = 2.0
    assert total() == pytest.approx(40)
    plug.lost, plug.now_s = True, 7.0
    assert total() == pytest.approx(40)
    plug.lost, plug.now_s = False, 8.0
    assert total() == pytest.approx(160)
    plug.lost, plug.now_s = True, 8.0 + PATIENCE_S
    assert total() == pytest.approx(160)  # given up: those joules are not known
    plug.lost, plug.now_s = False, 9.0 + PATIENCE_S
    assert total() == pytest.approx(180)
