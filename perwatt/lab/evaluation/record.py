"""The Record of an evaluation: what every engine said of every image, and the figures that follow from that.

Raw parts (labels, answers) are measured once; `figures.complete` computes the rest and `check.check` computes it again.
Missing is None.

Format history
  1  first version
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from perwatt.lab.engine import Precision
from perwatt.lab.record import Array, Estimate

KIND = "evaluation"
READABLE_VERSIONS = (1,)
Status = Literal["ok", "invalid", "missing", "refused", "crashed", "timeout"]
Verdict = Literal["loss", "gain", "no difference seen"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Answers(_Part):
    """What one row said, an element an image, in the order of the Record's labels; whole numbers are exact in float32.

    `said`: the highest class. `rank`: how many classes lie before the label's (of equal ones those listed earlier).
    `confidence` and `label_confidence`: the probabilities of the said class and of the label. `errors`: the relative
    error of the whole output against the reference's, ||difference|| / ||reference||; None for the reference itself and
    where there is none.
    """

    said: Array
    rank: Array
    confidence: Array
    label_confidence: Array
    errors: Array | None


class Bin(_Part):
    """Images whose confidence lies above `above`, up to the next bin's: how many, their mean confidence, and how many
    were right.
    """

    above: float
    images: int
    confidence: float | None
    right: int


class ClassFigures(_Part):
    """One class: images that are of it, images said to be, and how many both; precision and recall with intervals."""

    images: int
    said: int
    right: int
    precision: Estimate | None
    recall: Estimate | None


class Confusion(_Part):
    """How many images of class `label` were said to be of class `said`."""

    label: int
    said: int
    images: int


class Figures(_Part):
    """What is printed of a row; every field follows from its answers, the labels and the reference's answers.

    `ece` is the expected calibration error: the mean over images of |confidence - share right| of their bin (Guo et
    al., ICML 2017, 15 bins of equal width). `classes` are those of the data. `confusions`: every pair that occurs,
    right ones included. `mistakes`: the wrong answers given with the greatest confidence, places in the labels.
    `agreement` is the share of images with the reference's class, `difference` the top-1 accuracy less the reference's
    on the same images, `verdict` what that shows, `resolution` the smallest loss that would have shown.
    """

    images: int
    top1: Estimate
    top5: Estimate | None
    mean_confidence: float
    ece: float
    bins: tuple[Bin, ...]
    classes: tuple[ClassFigures, ...]
    macro_precision: float | None
    macro_recall: float | None
    confusions: tuple[Confusion, ...]
    mistakes: tuple[int, ...]
    agreement: Estimate | None
    difference: Estimate | None
    verdict: Verdict | None
    resolution: float | None
    median_error: float | None
    largest_error: float | None


class Row(_Part):
    """One engine in one precision. `figures` and `answers` are None unless it answered for every image."""

    engine: str
    precision: Precision
    status: Status
    reason: str | None
    threads: int
    version: str | None
    precision_reported: str | None
    options: dict[str, str]
    answers: Answers | None
    figures: Figures | None


class PackageFacts(_Part):
    """The package that was evaluated."""

    name: str
    version: str
    model_sha256: str
    preprocessing: dict[str, str]
    classes: int
    labels: tuple[str, ...] | None


class DataFacts(_Part):
    """The labelled images: `classes` are the package's own by place. `labels` are places in them, one an image.

    `skipped` names pictures that are broken, with the reason; `names` those that figures point to.
    """

    name: str
    form: str
    split: str
    fingerprint: str
    classes: tuple[str, ...]
    labels: Array
    skipped: dict[str, str]
    names: dict[str, str]


class EvaluationRecord(_Part):
    """One evaluation. `reference` is the place of the row that others are held against.

    `probabilities` says whether the outputs are such; else their softmax is taken for the confidences. `digest` is the
    SHA-256 of all other fields.
    """

    kind: Literal["evaluation"]
    schema_version: Literal[1]
    created: str
    perwatt_version: str
    commit: str | None
    command: tuple[str, ...]
    machine: dict[str, str]
    machine_id: str
    notes: tuple[str, ...]
    duration_s: float
    package: PackageFacts
    data: DataFacts
    batch: int
    probabilities: bool
    reference: int | None
    rows: tuple[Row, ...]
    digest: str
