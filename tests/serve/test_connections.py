"""Connections with real sockets: slow senders, long headers, too many clients, refused bodies, clients that leave."""

import gc
import http.client
import json
import re
import socket
import struct
import time
from collections.abc import Iterator

import numpy as np
import pytest
from http_harness import Sockets, bench, binary_body, expected, json_body, photo, received, sockets, tensors

from perwatt.serve.connection import LEAST_DIRECT, Connection
from perwatt.serve.limits import MEBIBYTE, HttpLimits

pytestmark = pytest.mark.alone  # time-outs of sockets

# Tight enough to be waited for.
LIMITS = HttpLimits(
    header_s=0.4, receive_s=0.4, least_bytes_per_s=1e9, idle_s=1.0, header_bytes=2000, connections=12,
    body_bytes=8 * MEBIBYTE, event_streams=2,
)  # fmt: skip
INFER = "/v2/models/sums/infer"


@pytest.fixture(scope="module")
def served() -> Iterator[Sockets]:
    with sockets(bench(LIMITS)) as found:
        yield found


def request(body: bytes, path: str = INFER, **headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def wait_until(true: object) -> None:
    until = time.monotonic() + 10
    while not true():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.005)


def test_keep_alive_answers_one_request_after_the_other(served: Sockets) -> None:
    client = served.client()
    for seed in range(5):
        images = tensors(2, seed)
        body, headers = binary_body(images, outputs=[{"name": "first"}])
        client.request("POST", INFER, body, {name.replace("_", "-"): value for name, value in headers.items()})
        reply = client.getresponse()
        np.testing.assert_array_equal(
            np.array(json.loads(reply.read())["outputs"][0]["data"], np.float32), expected(images)[1]
        )


def test_a_large_body_arrives_whole_however_it_is_cut(served: Sockets) -> None:
    images = tensors(128)
    body, headers = binary_body(images, outputs=[{"name": "sums", "parameters": {"binary_data": True}}])
    for piece in (len(body), 65_536, 10_007):
        with served.connect() as connection:
            whole = request(body, connection="close", **headers)
            for start in range(0, len(whole), piece):
                connection.sendall(whole[start : start + piece])
            answer = received(connection)
        assert status_of(answer) == 200
        assert answer.endswith(expected(images)[0].tobytes())


def test_a_body_arrives_whole_wherever_its_first_part_ends(served: Sockets) -> None:
    """Most of a body is received past the parser; what came with the header, and what follows, must not be lost."""
    images = tensors(128)
    body, headers = binary_body(images, outputs=[{"name": "sums", "parameters": {"binary_data": True}}])
    start, last = len(request(body, **headers)) - len(body), request(b"{}", connection="close")
    with served.connect() as connection:
        for part in (0, 1, 300, 16_383, len(body) - LEAST_DIRECT, len(body) - LEAST_DIRECT + 1, len(body) - 1):
            whole = request(body, **headers)
            connection.sendall(whole[: start + part])
            time.sleep(0.02)
            connection.sendall(whole[start + part :])
            reply = http.client.HTTPResponse(connection)
            reply.begin()
            assert reply.status == 200
            assert reply.read().endswith(expected(images)[0].tobytes())
        connection.sendall(request(body, **headers)[:-1])
        time.sleep(0.02)
        connection.sendall(body[-1:] + last)  # the next request comes with the end of a body
        answer = received(connection)
    assert [int(status) for status in re.findall(rb"HTTP/1.1 (\d+) ", answer)] == [200, 400 + 22]


def test_pipelined_requests_are_answered_in_order(served: Sockets) -> None:
    bodies = [json_body(tensors(seed=seed), id=str(seed), outputs=[{"name": "first"}]) for seed in range(4)]
    with served.connect() as connection:
        connection.sendall(b"".join(request(body) for body in bodies[:-1]) + request(bodies[-1], connection="close"))
        answer = received(connection)
    assert [int(found) for found in re.findall(rb'"id":"(\d)"', answer)] == [0, 1, 2, 3]


def test_a_header_comes_alone_where_there_is_no_body(served: Sockets) -> None:
    for method, path, status in (("HEAD", "/v2", 200), ("HEAD", "/nothing", 404), ("GET", "/v2/", 200)):
        client = served.client()
        for _ in range(2):
            client.request(method, path)
            reply = client.getresponse()
            assert (reply.status, bool(reply.read())) == (status, method == "GET")


def test_chunked_bodies_and_expect_continue_work(served: Sockets) -> None:
    body = json_body(tensors())
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
    with served.connect() as connection:
        connection.sendall((head + "Expect: 100-continue\r\n\r\n").encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        for start in range(0, len(body), 400):
            part = body[start : start + 400]
            connection.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        assert status_of(received(connection)) == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /v2/models",
        request(b"x" * 50)[:-20],
        b"POST /v2/models/sums/infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    ],
    ids=["nothing", "half a header", "half a body", "half a chunk"],
)
def test_slow_senders_are_let_go(served: Sockets, sent: bytes) -> None:
    begun = time.monotonic()
    with served.connect() as connection:
        connection.sendall(sent)
        answer = received(connection)
    assert 0.3 < time.monotonic() - begun < 8
    assert not answer or status_of(answer) == 408
    assert bool(answer) == bool(sent)


def test_a_sender_who_drips_does_not_gain_time(served: Sockets) -> None:
    begun = time.monotonic()
    with served.connect() as connection:
        try:
            for byte in request(b"x" * 500):
                connection.sendall(bytes([byte]))
                time.sleep(0.02)
        except OSError:
            pass
        assert time.monotonic() - begun < 8
    wait_until(lambda: served.bench.front.requests == 0)


@pytest.mark.parametrize(
    "extra", [b"X-Long: " + b"x" * 3000, b"\r\n".join(b"X-%d: y" % n for n in range(400)), b"X-Long: " + b"x" * 10**6]
)
def test_long_headers_are_refused(served: Sockets, extra: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n" + extra + b"\r\n\r\n")
        answer = received(connection)  # although it was still being sent when it was refused
    assert status_of(answer) == 431
    assert b'{"error":' in answer


def test_a_header_that_never_ends_is_refused_too(served: Sockets) -> None:
    with served.connect() as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(400)))
        assert status_of(received(connection)) == 431


@pytest.mark.parametrize(
    "sent", [b"nonsense\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"GET \xff HTTP/1.1\r\n\r\n"]
)
def test_what_is_not_http_gets_400_in_json(served: Sockets, sent: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(sent)
        answer = received(connection)
    assert status_of(answer) == 400
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]


CHUNKED = b"POST /v2/models/sums/infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("sent", [b"0\r\nX: " + b"x" * 10**7, b"5;" + b"x" * 10**7], ids=["trailer", "extension"])
def test_what_comes_around_a_body_is_limited_too(served: Sockets, sent: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(CHUNKED + sent)
        answer = received(connection)
    assert status_of(answer) == 431


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v2 HTTP/1.1\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: elsewhere.example\r\nHost: localhost\r\n\r\n",
        CHUNKED.replace(b"chunked", b"gzip, chunked") + b"0\r\n\r\n",
    ],
)
def test_a_request_without_one_host_or_with_a_coding_nobody_undoes_is_refused(served: Sockets, head: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(head)
        answer = received(connection)
    assert status_of(answer) == 400
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]


@pytest.mark.slow
def test_a_refused_large_body_does_not_hide_its_refusal(served: Sockets) -> None:
    """The reason arrives although the body is still being sent; the connection then ends or goes on."""
    with served.connect() as connection:
        head = request(b"").replace(b"Content-Length: 0", b"Content-Length: %d" % (9 * MEBIBYTE))
        connection.sendall(head)
        connection.settimeout(60)
        connection.sendall(bytes(MEBIBYTE))
        assert status_of(connection.recv(65536)) == 413
        assert received(connection) == b""  # the rest never comes: closed after a while


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_refusal_is_seen_by_who_sends_all_before_reading(served: Sockets, version: str) -> None:
    """The connection ends with the answer, while the body still comes: it must not be reset."""
    body = bytes(5 * MEBIBYTE)
    head = request(body, connection="close", content_encoding="gzip").replace(b"HTTP/1.1", f"HTTP/{version}".encode())
    for piece in (1 << 30, 100_000):
        with served.connect() as connection:
            for start in range(0, len(head), piece):
                connection.sendall(head[start : start + piece])
            answer = received(connection)
        assert status_of(answer) == 415
        assert b"connection: close\r\n" in answer
    wait_until(lambda: served.bench.front.requests == 0)


def test_nothing_holds_a_closed_connection(served: Sockets) -> None:

    def alive() -> int:
        return sum(issubclass(type(each), Connection) for each in gc.get_objects())

    gc.collect()
    gc.disable()  # what only the collector of cycles finds stays for long, and with it what was received
    try:
        before = alive()
        for _ in range(10):
            with served.connect() as connection:
                connection.sendall(request(b"x" * 4000, connection="close", content_encoding="gzip"))
                assert status_of(received(connection)) == 415
            with served.connect() as connection:  # and one that leaves while its refused body still comes
                head = request(b"", content_encoding="gzip").replace(b"Content-Length: 0", b"Content-Length: 100000")
                connection.sendall(head)
                assert status_of(connection.recv(65536)) == 415
        until = time.monotonic() + 3
        while alive() > before + 2 and time.monotonic() < until:
            time.sleep(0.05)
        assert alive() <= before + 2
    finally:
        gc.enable()


def test_a_request_that_comes_with_the_end_of_another_is_counted_by_itself(served: Sockets) -> None:
    """The first is refused early, so that its client has its answer before the last chunk is parsed."""
    chunk = b"%x\r\n%b\r\n" % (100_000, bytes(100_000))
    refused = CHUNKED.replace(b"Transfer", b"Content-Encoding: gzip\r\nTransfer") + chunk
    last = request(json_body(tensors()), connection="close")
    with served.connect() as connection:
        connection.sendall(refused)
        time.sleep(0.05)
        connection.sendall(b"0\r\n\r\n" + last[:-100])
        time.sleep(0.05)
        connection.sendall(last[-100:])
        answer = received(connection)
    assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"415", b"200"]


def test_who_does_not_read_is_let_go(served: Sockets) -> None:
    """Answers that nobody takes keep neither memory nor a place among the requests."""
    images = tensors(128)
    body, headers = binary_body(
        images, outputs=[{"name": "sums", "parameters": {"binary_data": True}}], id="x" * 100_000
    )
    with served.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(0.3)
        whole = request(body, **headers)
        try:
            for _ in range(200):
                connection.sendall(whole)
        except OSError:  # it takes no more, or has closed
            pass
        wait_until(lambda: not served.server.server_state.connections)
    wait_until(lambda: served.bench.front.requests == 0)
    assert served.bench.front.held_bytes == 0


def test_too_many_connections_are_refused_and_the_others_live(served: Sockets) -> None:
    time.sleep(1.2)  # until those of other tests have gone
    held = [served.connect() for _ in range(LIMITS.connections)]
    wait_until(lambda: len(served.server.server_state.connections) == LIMITS.connections)
    with served.connect() as another:
        assert status_of(received(another)) == 503
    held[3].sendall(request(json_body(tensors()), connection="close"))
    assert status_of(received(held[3])) == 200
    for each in held:
        each.close()


def test_idle_connections_are_closed(served: Sockets) -> None:
    with served.connect() as connection:
        connection.sendall(request(json_body(tensors())))
        begun = time.monotonic()
        answer = received(connection)
    assert status_of(answer) == 200
    assert 0.5 < time.monotonic() - begun < 8


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_leaves_is_no_longer_worked_for(served: Sockets, how: str) -> None:
    service = served.bench.service
    before, service.pause_s = service.cancelled, 30.0
    try:
        connection = served.connect()
        connection.sendall(request(json_body(tensors())))
        wait_until(lambda: service.running == 1)
        if how == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.close()
        wait_until(lambda: service.running == 0)
    finally:
        service.pause_s = 0.0
    assert service.cancelled == before + 1
    wait_until(lambda: served.bench.front.requests == 0)
    assert served.bench.front.held_bytes == 0


def test_a_client_that_leaves_during_its_body_leaves_nothing_behind(served: Sockets) -> None:
    for end in (10, 200, 400):
        with served.connect() as connection:
            connection.sendall(request(json_body(tensors()))[:end])
    with served.connect() as connection:
        connection.sendall(request(photo(), "/v2/models/sums/classify")[:-10])
    wait_until(lambda: served.bench.front.requests == 0)
    assert served.bench.front.held_bytes == 0


def test_the_status_page_s_stream(served: Sockets) -> None:
    served.tick()
    served.tick()
    with served.connect() as connection:
        connection.sendall(b"GET /status/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        text = b""
        while text.count(b"event: second") < 2:
            text += connection.recv(65536)
        assert b"event: about" in text
        assert b"text/event-stream" in text
        last = max(int(found) for found in re.findall(rb"id: (\d+)", text))
        served.tick()
        while b"id: %d\n" % (last + 1) not in text:
            text += connection.recv(65536)
    with served.connect() as connection:  # who was there before gets only what is new
        connection.sendall(b"GET /status/events HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: %d\r\n\r\n" % last)
        text = b""
        while b"event: second" not in text:
            text += connection.recv(65536)
        assert re.findall(rb"id: (\d+)", text) == [b"%d" % (last + 1)]


def test_streams_are_limited_and_given_back(served: Sockets) -> None:
    def ask() -> tuple[socket.socket, bytes]:
        connection = served.connect()
        connection.sendall(b"GET /status/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return connection, connection.recv(65536)

    wait_until(lambda: len(served.server.server_state.tasks) == 0 or served.tick() is not None)
    held = [ask() for _ in range(LIMITS.event_streams)]
    assert [status_of(text) for _, text in held] == [200, 200]
    connection, text = ask()
    assert status_of(text) == 429
    for each in (connection, *[each for each, _ in held]):
        each.close()
    time.sleep(0.05)
    served.tick()  # a stream finds out at its next event

    def free() -> bool:
        served.tick()
        connection, text = ask()
        connection.close()
        return status_of(text) == 200

    wait_until(free)


def test_a_body_is_no_request_whatever_upgrade_is_asked_for(served: Sockets) -> None:
    """The parser takes an Upgrade to have no body: what follows would be run as a request of its own."""
    inner = b"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    whole = request(inner, connection="upgrade", upgrade="x")
    for cut in (len(whole), len(whole) - len(inner), len(whole) - 5):
        with served.connect() as connection:
            connection.sendall(whole[:cut])
            time.sleep(0.05)
            connection.sendall(whole[cut:])
            answer = received(connection)
        assert status_of(answer) == 400
        assert answer.count(b"HTTP/1.1 ") == 1
    chunked = whole.replace(b"Content-Length: %d" % len(inner), b"Transfer-Encoding: chunked")
    with served.connect() as connection:
        connection.sendall(chunked)
        answer = received(connection)
    assert status_of(answer) == 400
    assert answer.count(b"HTTP/1.1 ") == 1


def test_who_was_answered_before_the_end_of_the_body_is_not_kept_for_ever(served: Sockets) -> None:
    whole = request(b"x" * 1000, path="/v2/models/none/classify")
    with served.connect() as connection:
        connection.sendall(whole[:-500])
        time.sleep(0.1)
        connection.sendall(whole[-500:])
        begun = time.monotonic()
        assert status_of(received(connection)) == 404  # and closed
        assert time.monotonic() - begun < LIMITS.idle_s + 4


def test_a_header_that_begins_behind_a_body_has_its_time_too(served: Sockets) -> None:
    body, headers = binary_body(tensors(1), outputs=[{"name": "first"}])
    with served.connect() as connection:
        connection.sendall(request(body, **headers) + b"POS")
        answer = received(connection)
    assert status_of(answer) == 200
    assert answer.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 408 " in answer


def test_an_idle_connection_that_is_reset_is_let_go_at_once(served: Sockets) -> None:
    connection = served.connect()
    connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
    (ours,) = (c for c in served.server.server_state.connections if c.client == connection.getsockname())
    wait_until(lambda: ours.timeout_keep_alive_task is not None)  # type: ignore[union-attr]
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    wait_until(lambda: ours not in served.server.server_state.connections)
    assert ours.timeout_keep_alive_task is None  # type: ignore[union-attr]


def test_empty_lines_around_requests_are_nothing(served: Sockets) -> None:
    """RFC 9112, 2.2; and however many come, they do not add up to a header."""
    asked = b"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with served.connect() as connection, connection.makefile("rb") as reader:
        for piece in (b"\r\n" + asked, asked + b"\r\n", b"\r\n\r\n", asked, *([b"\r\n" * 300] * 5), asked):
            connection.sendall(piece)
            time.sleep(0.01)
            if asked in piece:
                assert reader.readline().startswith(b"HTTP/1.1 200 ")
                while reader.readline() != b"\r\n":
                    pass
                assert reader.read(len(b'{"live":true}')) == b'{"live":true}'
