"""Refused before the body is received: by headers and the JSON in front of tensors, on real sockets and both loops."""

import asyncio
import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from math import inf

import numpy as np
import pytest
from http_harness import Sockets, bench, binary_body, expected, json_body, photo, received, sockets, tensors

from perwatt.errors import Refused
from perwatt.serve import door as doors
from perwatt.serve.connection import Connection
from perwatt.serve.limits import MEBIBYTE, HttpLimits
from perwatt.serve.server import loop_factory

LIMITS = HttpLimits(header_s=0.4, receive_s=0.6, least_bytes_per_s=1e9, idle_s=5.0, body_bytes=8 * MEBIBYTE)
INFER, CLASSIFY = "/v2/models/sums/infer", "/v2/models/sums/classify"
BUSY = Refused("come again", reason="deadline", status=429, retry_after_s=0.25)


@dataclass
class Full:
    """Stands in for the network's admission: turns away whom `welcome` does not want, and notes who asked."""

    welcome: Callable[[int], bool] = lambda priority: False
    asked: list[tuple[int, float | None, int]] = field(default_factory=list)

    def turns_away(self, images: int, *, deadline: float | None = None, priority: int = 0) -> Refused | None:
        self.asked.append((images, deadline, priority))
        return None if self.welcome(priority) else BUSY


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def served(request: pytest.FixtureRequest) -> Iterator[Sockets]:
    """A server that refused somebody just now, and always will have."""
    make = loop_factory() if request.param == "uvloop" else asyncio.new_event_loop
    if make is None:
        pytest.skip("uvloop is not installed")
    with sockets(bench(LIMITS), make) as found:
        yield found


@pytest.fixture
def full(served: Sockets, monkeypatch: pytest.MonkeyPatch) -> Full:
    found = Full()
    monkeypatch.setattr(served.bench.service, "turns_away", found.turns_away)
    monkeypatch.setattr(served.bench.front, "pressed_s", inf)
    return found


def asking(images: np.ndarray, path: str = INFER, extra: str = "", **more: object) -> tuple[bytes, bytes, bytes]:
    """Return the header, the JSON and the tensor of a request."""
    body, headers = binary_body(images, outputs=[{"name": "first"}], **more)
    length = int(headers["inference_header_content_length"])
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
    head += f"Inference-Header-Content-Length: {length}\r\n{extra}\r\n"
    return head.encode(), body[:length], body[length:]


def answer_of(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read one answer and leave the connection open."""
    reply = http.client.HTTPResponse(connection)
    reply.begin()
    return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


def first_values(body: bytes) -> np.ndarray:
    return np.array(json.loads(body)["outputs"][0]["data"], np.float32)


def test_a_tensor_is_refused_before_it_is_sent_and_the_connection_serves_on(served: Sockets, full: Full) -> None:
    images = tensors(128)
    head, asked, tensor = asking(images)
    with served.connect() as connection:
        for _ in range(3):
            connection.sendall(head + asked)
            status, headers, body = answer_of(connection)
            assert (status, headers["retry-after"], headers["retry-after-ms"]) == (429, "1", "250")
            assert json.loads(body) == {"error": "come again"}
            connection.sendall(tensor)
        full.welcome = lambda priority: True
        connection.sendall(head + asked + tensor)
        status, _, body = answer_of(connection)
        assert status == 200
        np.testing.assert_array_equal(first_values(body), expected(images)[1])
    assert [count for count, _, _ in full.asked] == [128] * 4


@pytest.mark.parametrize("piece", [1 << 30, 65_536, 1_009])
def test_what_follows_a_refused_body_is_the_next_request(served: Sockets, full: Full, piece: int) -> None:
    full.welcome = lambda priority: priority == 1
    refused, *kept = tensors(40, 1), tensors(3, 2), tensors(50, 3)
    parts = [asking(refused), *(asking(images, parameters={"priority": 1}) for images in kept)]
    whole = b"".join(b"".join(part) for part in parts)
    with served.connect() as connection:
        for start in range(0, len(whole), piece):
            connection.sendall(whole[start : start + piece])
        reader = connection.makefile("rb")
        statuses = []
        for _ in range(3):
            status, body = next_answer(reader)
            statuses.append(status)
            if statuses[-1] == 200:
                np.testing.assert_array_equal(first_values(body), expected(kept.pop(0))[1])
    assert statuses == [429, 200, 200]


def test_the_header_in_pieces_and_the_json_after_it(served: Sockets, full: Full) -> None:
    head, asked, tensor = asking(tensors(64))
    with served.connect() as connection:
        for part in (head[:20], head[20:], asked[:15]):
            connection.sendall(part)
            time.sleep(0.05)
        assert full.asked == []  # a priority may still come
        connection.sendall(asked[15:])
        assert answer_of(connection)[0] == 429
        connection.sendall(tensor)
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert answer_of(connection)[0] == 200


@pytest.mark.parametrize(
    ("extra", "parameters", "priority", "timeout_s"),
    [
        ("", {}, 8, None),
        ("", {"priority": 2}, 2, None),
        ("X-Request-Priority: 3\r\n", {}, 3, None),
        ("X-Request-Priority: 3\r\n", {"priority": 2}, 2, None),
        ("", {"timeout": 7_000_000}, 8, 7.0),
        ("X-Request-Timeout-Ms: 4000\r\n", {}, 8, 4.0),
        ("X-Request-Timeout-Ms: 4000\r\n", {"timeout": 7_000_000}, 8, 7.0),
    ],
)
def test_priority_and_timeout_are_those_of_the_json_else_of_the_headers(
    served: Sockets, full: Full, extra: str, parameters: dict[str, int], priority: int, timeout_s: float | None
) -> None:
    head, asked, _ = asking(tensors(), extra=extra, parameters=parameters)
    before = time.monotonic()
    with served.connect() as connection:
        connection.sendall(head + asked)
        assert answer_of(connection)[0] == 429
    ((images, deadline, found),) = full.asked
    assert (images, found) == (1, priority)
    if timeout_s is None:
        assert deadline is None
    else:  # up to a tenth is kept for the way back
        assert deadline is not None
        assert 0.9 * timeout_s <= deadline - before <= timeout_s + 1.0


def test_a_priority_in_the_json_opens_the_door(served: Sockets, full: Full) -> None:
    full.welcome = lambda priority: priority == 1
    images = tensors()
    with served.connect() as connection:
        connection.sendall(b"".join(asking(images, parameters={"priority": 1})))
        status, _, body = answer_of(connection)
    assert status == 200
    np.testing.assert_array_equal(first_values(body), expected(images)[1])


@pytest.mark.parametrize(
    ("inputs", "count"),
    [
        ([{"shape": [3, 3, 8, 8]}, {"shape": [7]}], 3),
        ([{"shape": []}], 1),
        ([{"shape": [-1, 3]}], 1),
        ([{"shape": ["3"]}], 1),
        ([{}], 1),
        ([], 1),
        ("all", 1),
    ],
)
def test_as_many_images_are_judged_as_the_first_tensor_says(
    served: Sockets, full: Full, inputs: object, count: int
) -> None:
    asked = json.dumps({"inputs": inputs}).encode()
    line = f"POST {INFER} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(asked) + 9000}\r\n"
    with served.connect() as connection:
        connection.sendall(f"{line}Inference-Header-Content-Length: {len(asked)}\r\n\r\n".encode() + asked)
        assert answer_of(connection)[0] == 429
    assert [images for images, _, _ in full.asked] == [count]


def test_too_many_images_are_told_what_is_wrong_and_not_to_come_again(served: Sockets, full: Full) -> None:
    head, asked, tensor = asking(tensors(LIMITS.images_per_request + 1))
    with served.connect() as connection:
        connection.sendall(head + asked + tensor)
        assert answer_of(connection)[0] == 413
    assert full.asked == []


def test_a_slow_sender_holds_no_place(served: Sockets, full: Full) -> None:
    full.welcome = lambda priority: True
    head, asked, tensor = asking(tensors(64))
    with served.connect() as slow, served.connect() as slower:
        slower.sendall(head + asked[:10])
        slow.sendall(head + asked + tensor[:100])
        wait_until(lambda: len(full.asked) == 1)
        time.sleep(0.05)
        assert served.bench.front.requests == 1  # the one that is let in; the other has not even asked
        assert received(slow).startswith(b"HTTP/1.1 408 ")
        assert received(slower).startswith(b"HTTP/1.1 408 ")
    wait_until(lambda: served.bench.front.requests == 0)
    assert served.bench.front.held_bytes == 0


@pytest.mark.slow
def test_a_refused_body_that_never_ends_is_let_go(served: Sockets, full: Full) -> None:
    head, asked, tensor = asking(tensors(64))
    begun = time.monotonic()
    with served.connect() as connection:
        connection.sendall(head + asked + tensor[:1000])
        assert answer_of(connection)[0] == 429
        try:
            for _ in range(400):
                connection.sendall(b"x")
                time.sleep(0.02)
        except OSError:
            pass
        assert 0.4 < time.monotonic() - begun < 7
    wait_until(lambda: not served.server.server_state.connections)


def test_a_client_that_leaves_while_its_refused_body_comes_leaves_nothing_behind(served: Sockets, full: Full) -> None:
    head, asked, tensor = asking(tensors(64))
    for end in (0, 100, len(tensor) - 1):
        with served.connect() as connection:
            connection.sendall(head + asked + tensor[:end])
            assert answer_of(connection)[0] == 429
    wait_until(lambda: not served.server.server_state.connections)
    assert served.bench.front.held_bytes == served.bench.front.requests == 0


def test_photographs_and_bare_tensors_are_judged_by_their_headers(served: Sockets, full: Full) -> None:
    picture = photo(400, 300)
    bare = f"POST {INFER} HTTP/1.1\r\nHost: 127.0.0.1\r\nInference-Header-Content-Length: 0\r\n"
    kind = f"POST {INFER} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
    for line in (f"POST {CLASSIFY} HTTP/1.1\r\nHost: 127.0.0.1\r\n", bare, kind):
        with served.connect() as connection:
            connection.sendall(f"{line}Content-Length: {len(picture)}\r\n\r\n".encode())
            assert answer_of(connection)[0] == 429
            connection.sendall(picture)
            connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert answer_of(connection)[0] == 200


def test_what_can_stand_anywhere_in_the_body_is_waited_for(served: Sockets, full: Full) -> None:
    """All JSON, chunks and Expect go the ordinary way, where the network of this test lets tensors in."""
    images = tensors()
    text = json_body(images, outputs=[{"name": "first"}])
    start = f"POST {INFER} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode()
    chunked = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(text), text)
    with served.connect() as connection:
        for rest in (b"Content-Length: %d\r\n\r\n%b" % (len(text), text), chunked):
            connection.sendall(start + rest)
            status, _, body = answer_of(connection)
            assert status == 200
            np.testing.assert_array_equal(first_values(body), expected(images)[1])
        head, asked, tensor = asking(images, extra="Expect: 100-continue\r\n")
        connection.sendall(head)
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(asked + tensor)
        assert answer_of(connection)[0] == 200
    assert full.asked == []


@pytest.mark.parametrize(
    ("status", "path", "extra", "spoiled"),
    [
        (404, "/v2/models/none/infer", "", False),
        (400, INFER, "X-Request-Timeout-Ms: 0\r\n", False),
        (400, INFER, "X-Request-Priority: first\r\n", False),
        (403, INFER, "Origin: http://elsewhere.example\r\n", False),
        (400, INFER, "", True),
    ],
)
def test_what_is_wrong_with_a_request_is_said_first(
    served: Sockets, full: Full, status: int, path: str, extra: str, spoiled: bool
) -> None:
    head, asked, tensor = asking(tensors(), path, extra)
    with served.connect() as connection:
        connection.sendall(head + (b"[" + asked[1:] if spoiled else asked) + tensor)
        assert answer_of(connection)[0] == status
    assert full.asked == []


def test_the_door_stands_open_while_nobody_is_refused(
    served: Sockets, full: Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.bench.front, "pressed_s", time.monotonic() - 2.0)
    with served.connect() as connection:
        connection.sendall(b"".join(asking(tensors())))
        assert answer_of(connection)[0] == 200
        assert full.asked == []
        monkeypatch.setattr(served.bench.service, "refusal", BUSY)
        connection.sendall(b"".join(asking(tensors())))
        assert answer_of(connection)[0] == 429  # from the queue; from now on, from the door
        monkeypatch.setattr(served.bench.service, "refusal", None)
        connection.sendall(b"".join(asking(tensors())))
        assert answer_of(connection)[0] == 429
    assert len(full.asked) == 1


def test_who_is_refused_at_the_door_is_counted(served: Sockets, full: Full) -> None:
    def counted() -> tuple[float, float]:
        registry = served.bench.front.metrics.registry
        refused = registry.get_sample_value("perwatt_refused_total", {"model": "sums", "reason": "deadline"})
        answered = registry.get_sample_value(
            "perwatt_requests_total", {"model": "sums", "route": "infer", "code": "429"}
        )
        return refused or 0.0, answered or 0.0

    before = counted()
    head, asked, tensor = asking(tensors(), extra=f"Traceparent: 00-{'1' * 32}-{'2' * 16}-01\r\n")
    with served.connect() as connection:
        connection.sendall(head + asked + tensor)
        _, headers, _ = answer_of(connection)
    assert headers["traceparent"].startswith("00-1111")
    assert counted() == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize("welcome", [True, False])
def test_bodies_as_large_as_real_ones_do_not_stand_still(served: Sockets, full: Full, welcome: bool) -> None:
    full.welcome = lambda priority: welcome
    picture = photo(600, 400)
    assert 600_000 < len(picture) < MEBIBYTE
    head = f"POST {CLASSIFY} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(picture)}\r\n\r\n".encode()
    begun = time.monotonic()
    with served.connect() as connection:
        for _ in range(10):
            connection.sendall(head + picture)
            assert answer_of(connection)[0] == (200 if welcome else 429)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_who_does_not_stay_is_refused_at_the_door_too_and_sees_it(served: Sockets, full: Full, version: str) -> None:
    """With `Connection: close`, as proxies ask: the body is thrown away, and the connection ends without a reset."""
    head, asked, tensor = asking(tensors(64), extra="Connection: close\r\n")
    head = head.replace(b"HTTP/1.1", f"HTTP/{version}".encode())
    with served.connect() as connection:  # reads first, and never sends its body
        connection.sendall(head + asked)
        answer = received(connection)
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"\r\nconnection: close\r\n" in answer
        assert b"\r\nretry-after: 1\r\n" in answer
    with served.connect() as connection:  # sends everything first, in its own time
        connection.sendall(head + asked)
        for start in range(0, len(tensor), 4000):
            connection.sendall(tensor[start : start + 4000])
            time.sleep(0.05)
        assert received(connection).startswith(b"HTTP/1.1 429 ")
    wait_until(lambda: not served.server.server_state.connections)
    assert len(full.asked) == 2


def test_too_many_requests_at_once_are_refused_at_the_door(
    served: Sockets, full: Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.bench.front, "requests", LIMITS.requests)
    head, asked, tensor = asking(tensors(64))
    with served.connect() as connection:
        for _ in range(2):
            connection.sendall(head + asked)
            assert answer_of(connection)[0] == 429
            connection.sendall(tensor)
    assert full.asked == []
    assert served.bench.front.requests == LIMITS.requests


def test_who_reads_no_refusals_is_not_written_more_and_more(served: Sockets, full: Full) -> None:
    line = f"POST {CLASSIFY} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1\r\n\r\nx".encode()
    held = 0
    with served.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(0.5)
        try:
            for _ in range(80):
                connection.sendall(line * 1000)
                open_now = list(served.server.server_state.connections)
                held = max([held, *(each.transport.get_write_buffer_size() for each in open_now)])
        except OSError:  # it is not read from any more, or was let go
            pass
    assert held < MEBIBYTE


@pytest.mark.slow
def test_a_refusal_starts_no_clock_for_the_request_behind_it(
    served: Sockets, full: Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both come at once: the connection is not idle while the second is answered."""
    full.welcome = lambda priority: priority == 1
    monkeypatch.setattr(served.bench.service, "pause_s", 1.5)
    monkeypatch.setattr(served.server.config, "timeout_keep_alive", 1)
    images = tensors()
    both = b"".join(asking(images)) + b"".join(asking(images, parameters={"priority": 1}))
    with served.connect() as connection:
        connection.sendall(both)
        with connection.makefile("rb") as reader:
            text = reader.readline()
            while not text.endswith(b'come again"}'):
                text += reader.read(1)
        assert text.startswith(b"HTTP/1.1 429 ")
        status, _, body = answer_of(connection)
    assert status == 200
    np.testing.assert_array_equal(first_values(body), expected(images)[1])


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the headers that went through the parser."""
    found: list[int] = []
    whole = Connection.on_headers_complete

    def noting(self: Connection) -> None:
        found.append(len(self.headers))
        whole(self)

    monkeypatch.setattr(Connection, "on_headers_complete", noting)
    return found


@pytest.mark.parametrize("piece", [1 << 30, 1 << 15, 1_009])
def test_a_header_that_was_refused_is_refused_again_without_parsing(
    served: Sockets, full: Full, parsed: list[int], piece: int
) -> None:
    images = tensors(128)
    head, asked, tensor = asking(images, extra=f"X-Piece: {piece}\r\n")
    whole = head + asked + tensor
    with served.connect() as first, served.connect() as second:
        for _ in range(3):
            for connection in (first, second):
                for start in range(0, len(whole), piece):
                    connection.sendall(whole[start : start + piece])
                status, headers, body = answer_of(connection)
                assert (status, headers["retry-after-ms"]) == (429, "250")
                assert json.loads(body) == {"error": "come again"}
        assert len(parsed) == 1  # of both connections
        full.welcome = lambda priority: True
        for connection in (first, second):
            connection.sendall(whole)
            status, _, body = answer_of(connection)
            assert status == 200
            np.testing.assert_array_equal(first_values(body), expected(images)[1])
    assert len(parsed) == 3
    assert len(full.asked) == 8  # nobody twice


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_any_mixture_in_any_pieces_is_answered_in_order(
    served: Sockets, full: Full, parsed: list[int], seed: int, pipelined: bool
) -> None:
    """Refused and let in, new headers and known ones, small bodies and large, one behind the other."""
    draw = random.Random(seed)
    full.welcome = lambda priority: priority == 1
    sizes = (1, 2, 70)
    kinds = [
        asking(tensors(size, size), extra=extra, parameters={"priority": priority})
        for size in sizes
        for extra in ("", "X-A: b\r\n")
        for priority in (1, 2)
    ]
    chosen = [draw.randrange(len(kinds)) for _ in range(60)]
    with served.connect() as connection, connection.makefile("rb") as reader:
        for together in [chosen] if pipelined else [[kind] for kind in chosen]:
            whole = b"".join(b"".join(kinds[kind]) for kind in together)
            sender = threading.Thread(target=send_in_pieces, args=(connection, whole, draw))
            sender.start()
            for kind in together:
                status, body = next_answer(reader)
                if kind % 2 == 0:
                    assert status == 200
                elif not pipelined:  # who comes before another is answered goes the ordinary way, which is open here
                    assert status == 429
                if status == 200:
                    np.testing.assert_array_equal(
                        first_values(body), expected(tensors(sizes[kind // 4], sizes[kind // 4]))[1]
                    )
                else:
                    assert json.loads(body) == {"error": "come again"}
            sender.join()
    assert pipelined or len(parsed) < len(chosen)


def next_answer(reader: BufferedReader) -> tuple[int, bytes]:
    status, length = int(reader.readline().split()[1]), 0
    while (line := reader.readline().strip()) != b"":
        name, _, value = line.partition(b": ")
        length = int(value) if name.lower() == b"content-length" else length
    return status, reader.read(length)


def send_in_pieces(connection: socket.socket, whole: bytes, draw: random.Random) -> None:
    while whole:
        piece = draw.choice([1, 7, 100, 4000, 20_000, 300_000])
        connection.sendall(whole[:piece])
        whole = whole[piece:]
        if draw.random() < 0.3:
            time.sleep(0.002)


def test_a_header_is_remembered_only_as_the_parser_reads_it(served: Sockets, full: Full, parsed: list[int]) -> None:
    """An empty line within a body, and lines before a request, make no other header of it."""
    body = b"\r\n\r\nPOST / HTTP/1.1\r\n\r\n" * 40
    lines = f"POST {CLASSIFY} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Odd: 1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for before in (b"", b"\r\n", b"\r\n\r\n"):
        for _ in range(2):
            with served.connect() as connection:
                for _ in range(3):
                    connection.sendall(before + lines + body)
                    assert answer_of(connection)[0] == 429
                connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                assert answer_of(connection)[0] == 200
    door = served.server.config.http_protocol_class.door  # type: ignore[union-attr]
    assert all(header.startswith(b"POST ") and header.endswith(b"\r\n\r\n") for header in door._known)
    assert all(header.count(b"\r\n\r\n") == 1 for header in door._known)


def test_many_headers_and_long_ones_are_not_all_remembered(
    served: Sockets, full: Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = served.server.config.http_protocol_class.door  # type: ignore[union-attr]
    monkeypatch.setattr(doors, "MOST_KNOWN", 5)
    body = b"x" * 5000
    with served.connect() as connection:
        for number in range(12):
            extra = f"X-Number: {number}\r\nX-Long: {'y' * (3000 * (number % 2))}\r\n"
            line = f"POST {CLASSIFY} HTTP/1.1\r\nHost: 127.0.0.1\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
            connection.sendall(line.encode() + body)
            assert answer_of(connection)[0] == 429
    assert 0 < len(door._known) <= 5
    assert max(map(len, door._known)) <= doors.MOST_KNOWN_BYTES


def test_a_remembered_header_goes_the_ordinary_way_once_nobody_is_refused_any_more(
    served: Sockets, full: Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tensors(128)
    whole = b"".join(asking(images))
    with served.connect() as connection:
        for _ in range(2):
            connection.sendall(whole)
            assert answer_of(connection)[0] == 429
        monkeypatch.setattr(served.bench.front, "pressed_s", time.monotonic() - 2.0)
        asked = len(full.asked)
        connection.sendall(whole)
        assert answer_of(connection)[0] == 200
        assert len(full.asked) == asked


@pytest.mark.slow
def test_a_body_that_never_ends_behind_a_known_header_is_let_go(served: Sockets, full: Full) -> None:
    head, asked, tensor = asking(tensors(64))
    with served.connect() as connection:
        connection.sendall(head + asked + tensor)
        assert answer_of(connection)[0] == 429
        connection.sendall(head + asked + tensor[:1000])
        assert answer_of(connection)[0] == 429
        assert received(connection) == b""  # until the server closes
    wait_until(lambda: not served.server.server_state.connections)


def test_empty_lines_around_a_known_header_change_nothing(served: Sockets, full: Full) -> None:
    body = b"x" * 50
    line = f"POST {CLASSIFY} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with served.connect() as connection:
        connection.sendall(line + body)
        assert answer_of(connection)[0] == 429
        for _ in range(LIMITS.header_bytes // 2 // 20):  # of empty lines as many as a header may have bytes
            connection.sendall(line + body + b"\r\n" * 20)
            assert answer_of(connection)[0] == 429
        connection.sendall(b"\r\n")
        time.sleep(0.05)
        connection.sendall(line + body[:10])  # and no more: refused once, and let go without a second answer
        assert answer_of(connection)[0] == 429
        assert received(connection) == b""
