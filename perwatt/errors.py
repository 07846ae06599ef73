"""Every exception perwatt raises on purpose. A message says what was expected, what was got, and what to do.

PerwattError                  a person can mend the cause; the command line prints one line and exits with 2
├── NetworkError              a network file cannot be used
│   ├── UnsupportedOperator   an operator that perwatt's own engine does not have
│   └── InvalidGraph          a Graph breaks a rule of the operator table: a defect of a reader, pass or builder
├── InputError                arrays, photographs or arguments a caller handed in
│   └── PhotographRefused     a photograph that is none, is damaged or goes beyond a limit
├── OutputError               a folder or file that cannot be written
├── DataError                 a labelled data set that cannot be used
├── TrainingError             training that cannot begin, go on or be resumed
├── RecordError               a Record that cannot be read, or whose figures do not follow from its samples
├── EngineError               an engine could not do what it was asked
│   ├── EngineMissing         the engine's library is not installed
│   ├── EngineRefused         the engine runs here, but not this network, batch or precision
│   ├── EngineCrashed         the engine's process died
│   └── EngineTimeout         the engine did not answer in time
├── Refused                   a server turns a request away: the reason, its HTTP status, when to come again
├── MeterError                a meter is closed, vanished or answers nonsense: a row without energy
├── PlanError                 no plan keeps within the limits that were set
└── PackageError              a package that cannot be used
    ├── InvalidPackage        a package that is damaged, hostile or contradicts itself
    ├── GoldenMismatch        a package whose network no longer answers as its golden examples say
    └── ExportMismatch        an exported network that answers otherwise than the trained one: not published
"""


class PerwattError(Exception):
    """The root: whatever perwatt raises on purpose."""


class NetworkError(PerwattError):
    """A network file cannot be used: not ONNX, truncated, weights missing, an unknown operator, a free dimension."""


class UnsupportedOperator(NetworkError):
    """An operator that perwatt's own engine does not have; rivals may still run the network."""


class InvalidGraph(NetworkError):
    """A Graph breaks a rule of the operator table."""


class InputError(PerwattError):
    """An array, photograph or argument that cannot be used."""


class PhotographRefused(InputError):
    """A photograph that cannot be used. `reason`: "format" (none of those read), "bytes", "pixels", "scans" or "frames"
    (more than allowed), or "damaged".
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class OutputError(PerwattError):
    """A folder or file that cannot be written."""


class DataError(PerwattError):
    """A labelled data set that cannot be used: broken pictures, empty classes, labels that do not match."""


class TrainingError(PerwattError):
    """Training that cannot begin, go on or be resumed."""


class RecordError(PerwattError):
    """A Record that cannot be read, or whose figures do not follow from its samples."""


class EngineError(PerwattError):
    """An engine could not do what it was asked; the lab turns this into a row that says so."""


class EngineMissing(EngineError):
    """The engine's library is not installed."""


class EngineRefused(EngineError):
    """The engine runs here, but not this network, batch or precision."""


class EngineCrashed(EngineError):
    """The engine's process died."""


class EngineTimeout(EngineError):
    """The engine did not answer within its time."""


class Refused(PerwattError):
    """A server turns a request away; `reason` is one word for the metrics, `status` the HTTP status.

    `retry_after_s` is when to come again, in seconds, or None where coming again would not help or nobody can tell.
    """

    def __init__(self, message: str, *, reason: str, status: int, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.reason, self.status, self.retry_after_s = reason, status, retry_after_s


class MeterError(PerwattError):
    """A meter is closed, vanished in mid-run or answers nonsense; the lab leaves the energy empty and says so."""


class PlanError(PerwattError):
    """No plan keeps within the limits that were set."""


class PackageError(PerwattError):
    """A package that cannot be used."""


class InvalidPackage(PackageError):
    """A package that is damaged, hostile or contradicts itself."""


class GoldenMismatch(PackageError):
    """A package whose network no longer answers as its golden examples say."""


class ExportMismatch(PackageError):
    """An exported network that answers otherwise than the one that was trained: it is not published."""
