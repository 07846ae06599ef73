"""Images laid ready for the next batch: whatever was laid, and whatever the batch carries in the end, they fit."""

import asyncio
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from perwatt.serve.channel import Buffer
from perwatt.serve.staging import Call, Staging, laid
from perwatt.serve.ticket import Part, Ticket

LARGEST = 8


def ticket_of(number: int, images: int) -> Ticket:
    values = 100.0 * number + np.arange(images, dtype=np.float32)
    loop: Any = asyncio.new_event_loop()
    call = Call(np.repeat(values[:, None], 3, axis=1), loop.create_future())
    loop.close()
    return Ticket(number, images, 0.0, float("inf"), 0, call)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.booleans(), st.booleans(), st.integers(0, 4)), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_every_image_lies_once_where_its_place_says(requests: list[tuple[int, bool, bool, int]], order: Any) -> None:
    buffer = Buffer(np.full((LARGEST, 3), -1, np.float32), (np.zeros((LARGEST, 3), np.float32),))
    staging = Staging(0, buffer)
    tickets = [(ticket_of(number, images), rest) for number, (images, *rest) in enumerate(requests)]
    for ticket, (early, _, _) in tickets:
        if early and ticket.images == 1 and staging.room:
            staging.lay(ticket.payload)
            assert laid(ticket, staging)
    order.shuffle(tickets)
    parts, room = [], LARGEST
    for ticket, (_, carried, first) in tickets:
        first = min(first, ticket.images - 1)
        count = min(ticket.images - first, room)
        if carried and count:
            parts.append(Part(ticket, first, count))
            room -= count
    if not parts:
        return
    images = LARGEST - room
    places = staging.settle(tuple(parts), images)
    assert sorted(slot for slots in places for slot in slots) == list(range(images)), "a hole, or two in one place"
    for part, slots in zip(parts, places, strict=True):
        wanted = part.ticket.payload.images[part.first : part.first + part.count]
        assert np.array_equal(buffer.images[slots], wanted)
    buffer.outputs[0][:] = buffer.images * 2  # the engine
    for part, slots in zip(parts, places, strict=True):
        call: Call = part.ticket.payload
        call.collect(part, slots, buffer)
        got = call.outputs[0][part.first : part.first + part.count]
        assert np.array_equal(got, call.images[part.first : part.first + part.count] * 2)
