"""The application as plain ASGI, a made-up network behind it: routes, admission, deadlines, limits, replacement."""

import asyncio
import base64
import json
import re
import time
from typing import Any

import numpy as np
import pytest
from http_harness import (
    HOW,
    Bench,
    Sums,
    ask,
    bench,
    binary_body,
    deployed,
    expected,
    json_body,
    photo,
    tensors,
)
from prometheus_client.parser import text_string_to_metric_families

from perwatt.errors import Refused
from perwatt.package.preprocessing import preprocess
from perwatt.serve.app import application, end_second
from perwatt.serve.energy import Joules
from perwatt.serve.limits import HttpLimits

INFER, CLASSIFY = "/v2/models/sums/infer", "/v2/models/sums/classify"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def made() -> Bench:
    return bench()


def sample(made: Bench, name: str, **labels: str) -> float:
    """Return one figure of /metrics, 0 where it is not there yet."""
    page = made.call("GET", "/metrics", authorization=f"Bearer {made.front.token}").body.decode()
    for family in text_string_to_metric_families(page):
        for each in family.samples:
            if each.name == name and labels.items() <= each.labels.items():
                return float(each.value)
    return 0.0


def test_the_protocol_s_facts(made: Bench) -> None:
    assert made.call("GET", "/v2/health/live").json == {"live": True}
    assert made.call("GET", "/v2/health/ready").status == 200
    server = made.call("GET", "/v2").json
    assert server["name"] == "perwatt"
    assert {"binary_tensor_data", "classification", "model_repository", "schedule_policy"} <= set(server["extensions"])
    facts = made.call("GET", "/v2/models/sums").json
    assert facts["versions"] == ["1"]
    assert facts["inputs"] == [{"name": "pixels", "datatype": "FP32", "shape": [-1, 3, 6, 5]}]
    assert facts["outputs"][1] == {"name": "first", "datatype": "FP32", "shape": [-1]}
    assert made.call("GET", "/v2/models/sums/versions/1").json == facts
    assert made.call("GET", "/v2/models/sums/ready").json == {"name": "sums", "ready": True}


@pytest.mark.parametrize("path", [INFER, "/v2/models/sums/versions/1/infer"])
def test_tensors_are_answered_in_both_forms(made: Bench, path: str) -> None:
    images = tensors(3)
    reply = made.call("POST", path, json_body(images))
    assert reply.status == 200
    assert (reply.json["model_name"], reply.json["model_version"]) == ("sums", "1")
    np.testing.assert_array_equal(np.array(reply.json["outputs"][1]["data"], np.float32), expected(images)[1])
    body, headers = binary_body(images, parameters={"binary_data_output": True})
    reply = made.call("POST", path, [body[:7], body[7:500], b"", body[500:]], **headers)  # in parts, as it may come
    length = int(reply.headers["inference-header-content-length"])
    sizes = [each["parameters"]["binary_data_size"] for each in json.loads(reply.body[:length])["outputs"]]
    assert sizes == [60, 12]
    assert reply.body[length:] == b"".join(each.tobytes() for each in expected(images))


def test_a_photograph_gets_its_labels(made: Bench) -> None:
    picture = photo()
    reply = made.call("POST", CLASSIFY + "?top=2", picture, content_type="application/x-www-form-urlencoded")
    values = expected(preprocess(picture, HOW)[np.newaxis])[0][0]
    assert [row["label"] for row in reply.json["labels"]] == ["class 3", "class 2"]
    np.testing.assert_array_equal(np.array([row["score"] for row in reply.json["labels"]], np.float32), values[[3, 2]])
    assert len(made.call("POST", CLASSIFY, picture).json["labels"]) == 5
    raw = made.call("POST", INFER, picture, content_type="image/png")
    assert raw.status == 200
    length = int(raw.headers["inference-header-content-length"])
    np.testing.assert_array_equal(np.frombuffer(raw.body[length:][:20], np.float32), values)


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, "malformed"),
        (b"no picture at all", 415, "image_format"),
        (photo()[:200], 422, "image_damaged"),
        (photo(600, 600, noisy=False), 413, "image_pixels"),
        (photo(kind="GIF"), 415, "image_format"),
        (photo(90, 90) + bytes(60_000), 413, "image_bytes"),
    ],
)
def test_photographs_beyond_the_limits_are_refused_with_the_reason(body: bytes, status: int, reason: str) -> None:
    made = bench(HttpLimits(pixels=10_000, image_bytes=50_000, formats=("PNG", "JPEG")))
    reply = made.call("POST", CLASSIFY, body)
    assert reply.status == status
    assert reply.json["error"]
    assert sample(made, "perwatt_refused_total", model="sums", reason=reason) == 1
    assert made.call("POST", CLASSIFY, photo()).status == 200  # and the next one is answered


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v2/models/other", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/other/classify", 404),
        ("POST", "/v2/models/sums/versions/9/infer", 404),
        ("GET", "/v2/models/other/ready", 404),
        ("GET", INFER, 404),
        ("POST", "/v2", 405),
        ("DELETE", "/v2/models/sums", 405),
        ("POST", CLASSIFY + "?top=0", 400),
        ("POST", CLASSIFY + "?top=" + "9" * 5000, 400),
        ("POST", CLASSIFY + "?" + "&" * 5000, 400),
        ("POST", "/v2/models/" + "x" * 5000 + "/infer", 404),
        ("GET", "/status/../secret", 404),
        ("GET", "/status/index.html", 404),
    ],
)
def test_what_is_not_there_is_said_in_json(made: Bench, method: str, path: str, status: int) -> None:
    reply = made.call(method, path, photo() if "top" in path else b"")
    assert reply.status in (status, 200 if path.endswith("&") else status)
    assert reply.status == 200 or reply.json["error"]


def test_bodies_are_limited_by_their_length_and_where_they_tell_none_as_they_come() -> None:
    made = bench(HttpLimits(body_bytes=1000, json_bytes=600))
    assert made.call("POST", INFER, bytes(1001)).status == 413
    parts = [bytes(300)] * 4
    assert made.call("POST", INFER, parts).status == 413  # no content-length
    assert made.call("POST", INFER, b" " * 601).status == 413
    assert made.call("POST", INFER, json_body(tensors()), content_length="x").status == 400
    assert made.front.held_bytes == 0
    assert made.front.requests == 0


def test_all_bodies_together_are_limited() -> None:
    made = bench(HttpLimits(held_bytes=2000))
    reply = made.call("POST", INFER, bytes(3000))
    assert reply.status == 429
    assert made.front.held_bytes == 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content_encoding": "gzip"}, 415),
        ({"content_encoding": "identity"}, 200),
        ({"inference_header_content_length": "-1"}, 400),
        ({"inference_header_content_length": "9" * 30}, 400),
        ({"x_request_timeout_ms": "0"}, 400),
        ({"x_request_timeout_ms": "soon"}, 400),
        ({"x_request_timeout_ms": "70000"}, 400),
        ({"x_request_priority": "high"}, 400),
        ({"origin": "https://elsewhere.example"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 200),
    ],
)
def test_headers_are_checked(made: Bench, headers: dict[str, str], status: int) -> None:
    assert made.call("POST", INFER, json_body(tensors()), **headers).status == status


def test_multipart_and_json_are_no_photograph(made: Bench) -> None:
    for kind in ("multipart/form-data; boundary=x", "application/json"):
        reply = made.call("POST", CLASSIFY, photo(), content_type=kind)
        assert reply.status == 415
        assert "--data-binary" in reply.json["error"]


def test_deadlines_and_priorities_reach_the_network() -> None:
    made = bench(deadline_s=0.25)
    before = time.monotonic()
    made.call("POST", INFER, json_body(tensors()))
    made.call("POST", INFER, json_body(tensors()), x_request_timeout_ms="4000", x_request_priority="2")
    body = json_body(tensors(), parameters={"timeout": 2_000_000, "priority": 1})
    made.call("POST", INFER, body, x_request_timeout_ms="4000", x_request_priority="5")  # the message's own count
    after = time.monotonic()
    given = [(each["deadline"], each["priority"]) for each in made.service.seen]
    for (deadline, priority), (wait_s, wanted) in zip(given, [(0.25, 8), (4.0, 2), (2.0, 1)], strict=True):
        assert before + wait_s <= deadline <= after + wait_s
        assert priority == wanted


def test_a_photograph_that_would_be_refused_is_not_decoded(made: Bench) -> None:
    made.service.unwelcome = Refused("too late", reason="deadline", status=429, retry_after_s=0.2)
    reply = made.call("POST", CLASSIFY, photo())
    made.service.unwelcome = None
    assert (reply.status, reply.headers["retry-after-ms"]) == (429, "200")
    assert made.front.decoder.mean_s is None
    assert not made.service.seen


def test_a_request_s_deadline_leaves_time_for_the_way_back_but_no_more_than_a_tenth() -> None:
    made = bench(deadline_s=2.0)
    for way_s, most_s in ((0.0, 2.0), (0.05, 1.95), (9.0, 1.8)):
        for _ in range(512):
            made.front.way_back.observe(way_s)
        before = time.monotonic()
        assert made.call("POST", CLASSIFY, photo()).status == 200
        deadline = made.service.seen[-1]["deadline"]
        assert before + 0.5 < deadline <= time.monotonic() + most_s


def test_a_deadline_that_passes_while_decoding_waits_is_refused_before_it_costs(made: Bench) -> None:
    made.front.decoder.mean_s = 100.0  # as if photographs took so long
    made.front.decoder.waiting = 2
    reply = made.call("POST", CLASSIFY, photo(), x_request_timeout_ms="50")
    assert reply.status == 429
    assert int(reply.headers["retry-after"]) == 30  # never asks for more
    made.front.decoder.waiting = made.front.decoder.queue
    assert made.call("POST", CLASSIFY, photo()).status == 429
    made.front.decoder.waiting = 0
    assert made.call("POST", CLASSIFY, photo()).status == 200


@pytest.mark.parametrize(("wait_s", "header"), [(2.2, "3"), (0.05, "1"), (500.0, "30"), (None, None)])
def test_refusals_tell_when_to_come_again(made: Bench, wait_s: float | None, header: str | None) -> None:
    made.service.refusal = Refused("full", reason="queue_full", status=429, retry_after_s=wait_s)
    reply = made.call("POST", INFER, json_body(tensors()))
    assert reply.status == 429
    assert reply.headers.get("retry-after") == header
    assert sample(made, "perwatt_refused_total", model="sums", reason="queue_full") == 1


def test_too_many_at_once_are_refused_with_a_computed_wait() -> None:
    made = bench(HttpLimits(requests=2))
    made.service.pause_s = 0.3
    made.front.traffic.answered_per_s = 0.5

    async def three() -> list[Any]:
        calls = [made.acall("POST", INFER, json_body(tensors())) for _ in range(3)]
        return await asyncio.gather(*calls)

    statuses = sorted(reply.status for reply in asyncio.run(three()))
    assert statuses == [200, 200, 429]
    made.front.requests = 2
    refused = made.call("POST", INFER, json_body(tensors()))
    assert refused.headers["retry-after"] == "4"  # two requests at half a request a second
    assert made.call("GET", "/v2/health/live").status == 200  # probes are exempt
    assert made.call("GET", "/metrics").status == 200


def test_traceparent_comes_back_when_it_is_one_and_timings_are_told(made: Bench) -> None:
    reply = made.call("POST", CLASSIFY, photo(), traceparent=TRACE)
    assert reply.headers["traceparent"] == TRACE
    timing = dict(re.findall(r"(\w+);dur=([\d.]+)", reply.headers["server-timing"]))
    assert set(timing) == {"receive", "decode", "queue", "infer"}
    assert (float(timing["queue"]), float(timing["infer"])) == (1.0, 2.0)
    assert made.call("POST", INFER, b"{", traceparent=TRACE).headers["traceparent"] == TRACE
    for broken in (
        "",
        "00-0-0-01",
        TRACE.replace("00-", "ff-"),
        TRACE.upper(),
        TRACE + "-x",
        "00-" + "0" * 32 + TRACE[35:],
    ):
        assert "traceparent" not in made.call("POST", INFER, json_body(tensors()), traceparent=broken).headers


def test_a_token_keeps_everything_but_probes() -> None:
    made = bench(token="a long secret")
    for path in ("/v2", "/v2/models/sums", "/metrics", "/", "/status/page.js", "/status/figures"):
        refused = made.call("GET", path)
        assert refused.status == 401, path
        assert "Basic" in refused.headers["www-authenticate"]
        assert made.call("GET", path, authorization="Bearer a long secret").status == 200
    assert made.call("POST", INFER, json_body(tensors())).status == 401
    assert made.call("GET", "/v2/health/live").status == made.call("GET", "/v2/health/ready").status == 200
    basic = base64.b64encode(b"anyone:a long secret").decode()
    for good in ("bearer a long secret", f"Basic {basic}"):
        assert made.call("POST", INFER, json_body(tensors()), authorization=good).status == 200
    for bad in (
        "Bearer a long secre",
        "Bearer",
        "a long secret",
        "Basic !!!",
        "Basic " + base64.b64encode(b"x").decode(),
        "Bearer \xe9",
    ):
        assert made.call("POST", INFER, json_body(tensors()), authorization=bad).status == 401, bad


@pytest.mark.parametrize("host", ["evil.example:8000", "evil.example", "127.0.0.1.evil.example", ""])
def test_without_a_token_no_foreign_name_reaches_the_server(made: Bench, host: str) -> None:
    async def foreign() -> Any:
        app = application(made.front)

        async def renamed(scope: Any, receive: Any, send: Any) -> None:
            scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"host"] + [(b"host", host.encode())]
            await app(scope, receive, send)

        return await ask(renamed, "POST", INFER, json_body(tensors()), {})

    assert asyncio.run(foreign()).status == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "[::1]:8000", "127.0.0.1", "10.1.2.3:80"])
def test_addresses_and_localhost_do(made: Bench, host: str) -> None:
    from perwatt.serve.front import harmless

    assert harmless(host.encode())


def test_loading_and_unloading_need_a_token(made: Bench) -> None:
    for action in ("load", "unload"):
        assert made.call("POST", f"/v2/repository/models/sums/{action}").status == 403
    assert made.call("POST", "/v2/repository/index").json[0]["state"] == "READY"


def test_packages_are_loaded_replaced_and_unloaded() -> None:
    made = bench(token="a long secret")
    key = {"authorization": "Bearer a long secret"}
    assert made.call("POST", "/v2/repository/models/spare/load", b"{}", **key).status == 200
    assert made.call("POST", "/v2/models/spare/infer", json_body(tensors()), **key).status == 200
    assert made.call("POST", "/v2/repository/models/sums/load", **key).json == {"name": "sums", "version": "2"}
    assert made.call("GET", "/v2/models/sums", **key).json["versions"] == ["2"]
    index = {row["name"]: row for row in made.call("POST", "/v2/repository/index", **key).json}
    assert index["spare"]["state"] == index["sums"]["state"] == "READY"
    assert made.call("POST", "/v2/repository/models/spare/unload", b'{"parameters": {}}', **key).status == 200
    assert made.call("POST", "/v2/models/spare/infer", json_body(tensors()), **key).status == 404
    ready = made.call("POST", "/v2/repository/index", b'{"ready": true}', **key).json
    assert [row["name"] for row in ready] == ["sums"]
    assert made.call("GET", "/v2/health/ready").status == 200  # what was unloaded is not missed
    assert made.call("POST", "/v2/repository/models/spare/load", **key).status == 422  # nothing there any more
    assert made.call("POST", "/v2/repository/models/passwd/load", **key).status == 404  # no name is a path
    body = b'{"parameters": {"config": "{}"}}'
    assert made.call("POST", "/v2/repository/models/sums/load", body, **key).status == 422
    assert made.call("POST", "/v2/repository/models/sums/load", b"[]", **key).status == 400
    assert made.call("POST", "/v2/repository/models/sums/load", bytes(70_000), **key).status == 413


def test_a_package_of_another_name_does_not_take_the_place() -> None:
    made = bench(token="a long secret")
    stranger = Sums(9.0)
    made.openings["sums.perwatt"] = iter([deployed(stranger, "stranger")])
    reply = made.call("POST", "/v2/repository/models/sums/load", authorization="Bearer a long secret")
    assert reply.status == 422
    assert stranger.closed
    assert made.call("POST", INFER, json_body(tensors()), authorization="Bearer a long secret").status == 200


def test_replacing_a_package_loses_no_request() -> None:
    """Requests go on all the while: none is refused, and nobody who has seen a version sees an older one after it."""
    made = bench()
    made.service.pause_s = 0.02

    async def replace() -> dict[int, list[float]]:
        app = application(made.front)
        going, versions = True, {number: [0.0] for number in (1, 3, 5, 7)}

        async def client(number: int) -> None:
            while going:
                path, body = (INFER, json_body(tensors(seed=number))) if number % 2 else (CLASSIFY, photo(seed=number))
                reply = await ask(app, "POST", path, body, {})
                assert reply.status == 200, reply.body
                if number % 2:
                    versions[number].append(reply.json["outputs"][0]["data"][4])

        clients = [asyncio.ensure_future(client(number)) for number in range(8)]
        for load in range(10):
            await asyncio.sleep(0.04)
            await made.front.repository.load("sums", 5.0)
            reply = await ask(app, "POST", INFER, json_body(tensors()), {})
            assert reply.json["outputs"][0]["data"][4] == load + 2  # at once, and not by and by
        going = False
        await asyncio.gather(*clients)
        await made.front.repository.close(1.0)
        return versions

    versions = asyncio.run(replace())
    for seen in versions.values():
        assert seen == sorted(seen)
        assert 1.0 in seen
        assert max(seen) >= 10.0
    assert made.service.closed


def test_draining_turns_readiness_and_refuses_what_comes(made: Bench) -> None:
    made.front.draining = True
    assert made.call("GET", "/v2/health/ready").status == 503
    assert made.call("GET", "/v2/models/sums/ready").status == 503
    assert made.call("GET", "/v2/health/live").status == 200
    refused = made.call("POST", INFER, json_body(tensors()))
    assert refused.status == 503
    assert refused.headers["retry-after"] == "1"


def test_a_network_that_is_not_ready_says_so(made: Bench) -> None:
    made.service.ready = False
    assert made.call("GET", "/v2/health/ready").status == 503
    made.front.repository.states["spare"] = ("LOADING", "")
    assert made.call("POST", "/v2/models/spare/infer", b"{}").status == 503


def test_a_client_that_goes_takes_its_request_with_it(made: Bench) -> None:
    """With a server that only tells through receive(); perwatt's own connections are tested with sockets."""
    made.service.pause_s = 30.0

    async def leave() -> None:
        app = application(made.front)
        gone = asyncio.Event()
        body = json_body(tensors())
        parts = [body]

        async def receive() -> dict[str, Any]:
            if parts:
                return {"type": "http.request", "body": parts.pop(), "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            raise AssertionError("nobody is there")

        headers = [(b"content-length", str(len(body)).encode())]
        scope = {"type": "http", "method": "POST", "path": INFER, "query_string": b"", "headers": headers}
        task = asyncio.ensure_future(app(scope, receive, send))
        while not made.service.running:
            await asyncio.sleep(0.001)
        gone.set()
        await asyncio.wait_for(task, 5)

    asyncio.run(leave())
    assert made.service.cancelled == 1
    assert made.front.requests == made.front.held_bytes == 0
    assert sample(made, "perwatt_refused_total", reason="cancelled") == 1


def test_metrics_count_what_happened(made: Bench) -> None:
    for _ in range(3):
        made.call("POST", INFER, json_body(tensors(2)))
    made.call("POST", CLASSIFY, photo())
    made.call("POST", INFER, b"{")
    labels = {"model": "sums", "route": "infer"}
    assert sample(made, "perwatt_requests_total", **labels, code="200") == 3
    assert sample(made, "perwatt_requests_total", **labels, code="400") == 1
    assert sample(made, "perwatt_images_total", model="sums") == 7
    assert sample(made, "perwatt_request_duration_seconds_count", **labels) == 3
    assert sample(made, "perwatt_stage_duration_seconds_count", model="sums", stage="decode") == 1
    assert sample(made, "perwatt_stage_duration_seconds_sum", model="sums", stage="infer") == pytest.approx(4 * 0.002)
    assert sample(made, "perwatt_refused_total", model="sums", reason="malformed") == 1
    names = {
        line.split()[2] for line in made.call("GET", "/metrics").body.decode().splitlines() if line[:6] == "# TYPE"
    }
    assert all(name.startswith("perwatt_") for name in names)
    assert not any(re.search(r"_(ms|us|millis|kb)(_|$)", name) for name in names)


def test_joules_are_shared_out_by_engine_time(made: Bench) -> None:
    made.front.energy = Joules(lambda: 0.0, "log:plug", "wall")
    end_second(made.front, 0, 100.0)
    made.service.engine_s = 10_000.0  # more than the second lasted: all of it was the package's
    made.call("POST", INFER, json_body(tensors(4)))
    end_second(made.front, 0, 160.0)
    assert sample(made, "perwatt_energy_joules_total", model="sums", meter="log:plug", scope="wall") == pytest.approx(
        60
    )
    figures = made.front.traffic.seconds[-1][1]
    assert figures["models"]["sums"]["joules_per_image"] == pytest.approx(15)
    end_second(made.front, 0, 190.0)  # nobody ran
    assert sample(made, "perwatt_energy_joules_total", model="", meter="log:plug") == pytest.approx(30)
    end_second(made.front, 0, None)
    assert made.front.traffic.seconds[-1][1]["joules"] is None
