"""A meter with a web address that answers JSON, such as a smart plug: `http://host/path#path.to.watts`.

The part after # is the way to the watts, with dots: `meters.0.power`. Plugs show the power of the last second or so.
"""

import json
import math
from collections.abc import Sequence
from urllib.error import HTTPError

from perwatt.errors import MeterError
from perwatt.lab.meters.meter import Found, Host, Meter, Offset, Reading

GAIN = 0.02
PERIOD_S = 1.0
POLL_S = 0.25
TIMEOUT_S = 2.0
ATTEMPTS = 2
MOST_W = 1e5


def find(name: str, host: Host) -> Found:
    """Return the meter of one address; it is closed when it does not answer with watts now."""
    url, _, path = name.partition("#")
    meter = Meter(
        name=name,
        family="http",
        scope="wall",
        covers=("system",),
        unit="W",
        quantum=0.1,
        update_period_s=PERIOD_S,
        gain=GAIN,
        averaging_s=PERIOD_S,
        sampled_share=0.5,  # plugs differ in how they average, and few say
        settle_s=3 * PERIOD_S,
        poll_s=POLL_S,
        reads_at_marks=False,  # an answer over the network takes its time, and may never come
        note="taken to be at the wall, right to 2 %, new every second",
    )
    if not path:
        remedy = f"perwatt meters --meter '{url}#path.to.watts'"
        return Found(meter, reason="expected a path to the watts after #, got none", remedy=remedy)
    source = Endpoint(url, tuple(path.split(".")), host)
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            source.read(0)
        except MeterError as error:
            reason = str(error)
        else:
            return Found(meter, open=lambda: source)
    return Found(meter, reason=reason, remedy=f"curl {url}")


class Endpoint:
    """The watts behind one address."""

    def __init__(self, url: str, path: tuple[str, ...], host: Host) -> None:
        self.url = url
        self.path = path
        self.host = host

    def read(self, now_ns: int) -> Sequence[Reading]:
        """Return the watts of now. Raises MeterError when no answer comes in two seconds, or one without watts."""
        try:
            answer = self.host.fetch(self.url, TIMEOUT_S)
        except (OSError, ValueError) as error:  # URLError and TimeoutError are OSErrors
            if isinstance(error, HTTPError):
                raise MeterError(f"{self.url}: expected JSON, got {error.code} {error.reason}") from None
            reason = getattr(error, "reason", None) or error
            raise MeterError(f"{self.url}: no answer within {TIMEOUT_S:g} s ({reason})") from None
        try:
            found = json.loads(answer)
        except ValueError:
            shown = answer[:40].decode(errors="replace")
            raise MeterError(f"{self.url}: expected JSON, got {shown!r}") from None
        for step in self.path:
            try:
                found = found[int(step)] if isinstance(found, list) else found[step]
            except (KeyError, IndexError, ValueError, TypeError):
                raise MeterError(f"{self.url}: expected {'.'.join(self.path)}, found no {step!r}") from None
        try:
            watts = math.nan if isinstance(found, bool) else float(found)
        except (TypeError, ValueError):
            watts = math.nan
        if not 0 <= watts <= MOST_W:
            raise MeterError(f"{self.url}: expected watts at {'.'.join(self.path)}, got {str(found)[:40]!r}")
        return (Reading(now_ns, watts),)

    def offset(self) -> Offset | None:
        """Return None: the readings are of the lab's clock."""
        return None

    def notes(self) -> tuple[str, ...]:
        """Return nothing."""
        return ()

    def close(self) -> None:
        """Do nothing: every reading is a request of its own."""
