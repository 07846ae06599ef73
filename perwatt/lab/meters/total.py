"""The joules of a meter since it was opened, as one number that only grows: what a server counts."""

from perwatt.errors import MeterError
from perwatt.lab.meters.meter import OpenMeter

# A window without a figure for so long (the meter vanished, a gap) is given up, and its joules are not counted.
PATIENCE_S = 30.0


class Total:
    """Joules so far of an open meter; each call adds those since the last. Not for several threads at once."""

    def __init__(self, meter: OpenMeter) -> None:
        self._meter = meter
        self._since_ns = meter.mark()
        self._joules = 0.0

    def __call__(self) -> float:
        """Return the joules so far; what the meter cannot tell yet is added by a later call."""
        now_ns = self._meter.mark() - int(1e9 * self._meter.meter.settle_s)
        if now_ns <= self._since_ns:
            return self._joules
        try:
            self._joules += self._meter.energy(self._since_ns, now_ns).joules
        except MeterError:
            if now_ns - self._since_ns < PATIENCE_S * 1e9:
                return self._joules
        self._since_ns = now_ns
        return self._joules
