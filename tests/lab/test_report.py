"""The report is one file that needs no network, shows every row, and draws what was measured."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from perwatt.errors import InputError, OutputError
from perwatt.lab import report
from perwatt.lab.pictures import bars, engine_colours, latency_against_throughput, png, svg, then_and_now
from perwatt.lab.published import BLOG, PUBLISHED, REPLICATION, published
from perwatt.lab.record import Record

Make = Callable[..., Record]
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and the tags that were not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.faults: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def drawn(make_record: Make) -> dict[str, str]:
    return {name: vector for name, (vector, _) in report.draw(make_record()).items()}


@pytest.fixture(scope="module")
def page(make_record: Make, drawn: dict[str, str]) -> str:
    return report.page(make_record(), drawn)


def test_the_page_is_whole_and_loads_nothing(page: str) -> None:
    parsed = Page(page)
    assert not parsed.faults
    assert not parsed.open
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"script", "img", "link", "iframe", "object", "image"}
    for _, attributes in parsed.tags:
        for name, value in attributes.items():
            if name in {"src", "xlink:href", "href", "action", "style"} and value:
                # Links for people may lead out; whatever loads by itself must stay inside the file.
                assert "url(http" not in value
                assert value.startswith("#") or name == "style" or value in (BLOG, REPLICATION), value
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_the_page_shows_every_row_and_fact(page: str, make_record: Make) -> None:
    record, text = make_record(), Page(page).text
    assert page.count("<tr") >= len(record.rows)
    for word in (
        "90.0 ±1.3",
        "1.07 (1.05–1.09)",
        "no difference seen",
        "died of SIGSEGV <&> in block 3",
        "Testium 9000",
    ):
        assert word in text
    for word in ("hint=LATENCY", "chelsea.png (cdcdcdcd)", "built-in, seed 0", "1.50 to 1.55", "a neighbour was busy"):
        assert word in text
    assert "<s>300 ±4</s>" in page
    assert "not shown by this machine" in text  # the temperature
    assert "None" not in text
    assert "nan" not in text.lower().replace("resonan", "")


def test_published_rows_are_marked_and_sourced(page: str) -> None:
    text = Page(page).text
    assert "over 3,000" in text
    assert "under 500" in text
    assert "3.9" in text
    assert page.count('<tr class="published">') == len([*published("alexnet"), *published("googlenet")])


def test_only_sourced_rows_are_published() -> None:
    sourced = {
        ("alexnet", 128, "fp16", "Tegra X1", 258, 45),
        ("alexnet", 48, "fp32", "Core i7 6700K", 242, 3.9),
        ("alexnet", 128, "fp32", "Titan X", 3000, None),
        ("alexnet", 48, "fp32", "Xeon E5-2698 v3", 500, None),
    }
    study = {
        (row.network, row.batch, row.precision, row.device, row.images_per_s, row.images_per_joule)
        for row in PUBLISHED
        if row.source == BLOG
    }
    assert study == sourced
    replicated = [row for row in PUBLISHED if row.source == REPLICATION]
    assert len(replicated) == 22
    assert all(row.images_per_joule is None for row in replicated)
    assert published("caffenet") == published("alexnet")
    assert published("lenet") == ()


def test_pictures_are_svg_in_the_pages_colour_with_their_own_names(drawn: dict[str, str]) -> None:
    assert list(drawn) == [name for name in report.PICTURES if name != "frontier"]  # which needs watts
    identifiers: set[str] = set()
    for vector in drawn.values():
        root = ElementTree.fromstring(vector)
        assert root.tag.endswith("svg")
        assert root.get("height") is None
        assert "currentColor" in vector
        assert "#123456" not in vector
        own = set(re.findall(r'<(?:path|clipPath|pattern)[^>]* id="([^"]+)"', vector))
        assert own
        assert not own & identifiers  # two pictures in one page must not use each other's shapes
        identifiers |= own
    assert ">FP32<" in drawn["bars"]
    assert "googlenet, batch 48" in drawn["bars"]
    assert "hollow: BF16" in drawn["latency"]
    assert "2015, Core i7 6700K FP32, batch 48" in drawn["then-and-now"]
    assert "today, openvino BF16, batch 1" in drawn["then-and-now"]


def test_the_same_record_draws_the_same_picture(make_record: Make) -> None:
    record = make_record()
    few = record.model_copy(update={"rows": record.rows[:3]})
    once, again = bars(few), bars(few)
    assert once is not None
    assert again is not None
    assert svg(once, "bars") == svg(again, "bars")


def test_invalid_rows_are_not_drawn(make_record: Make) -> None:
    figure = bars(make_record())
    assert figure is not None
    alexnet = figure.axes[0]
    assert sorted(patch.get_height() for patch in alexnet.patches) == [70.0, 83.0, 90.0, 160.0]
    assert len(alexnet.containers) == 8  # four bars and their whiskers


def test_every_engine_keeps_one_colour(make_record: Make) -> None:
    colours = engine_colours(make_record())
    assert len(set(colours.values())) == len(colours)
    assert colours["openvino"] == "#009E73"


def test_a_record_of_failures_has_a_page_without_pictures(make_record: Make) -> None:
    record = make_record()
    failed = record.model_copy(update={"rows": tuple(row for row in record.rows if row.status == "refused")})
    assert report.draw(failed) == {}
    assert (bars(failed), latency_against_throughput(failed), then_and_now(failed)) == (None, None, None)
    assert "no bf16 kernels" in report.page(failed, {})


def test_write_puts_the_page_and_its_pictures_side_by_side(
    make_record: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "draw", lambda record: dict.fromkeys(report.PICTURES, ("<svg></svg>", b"PNG")))
    written = report.write(make_record(), tmp_path / "run.html")
    assert [path.name for path in written] == [
        "run.html",
        *(f"run-{name}{suffix}" for name in report.PICTURES for suffix in (".svg", ".png")),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in written)
    assert (tmp_path / "run.html").read_text().count("<svg></svg>") == 4
    assert (tmp_path / "run-bars.png").read_bytes() == b"PNG"


def test_a_picture_is_a_png_on_white(make_record: Make) -> None:
    record = make_record()
    figure = bars(record.model_copy(update={"rows": record.rows[:3]}))
    assert figure is not None
    image = Image.open(BytesIO(png(figure))).convert("RGB")
    assert image.getpixel((1, 1)) == (255, 255, 255)
    assert image.width > 500


def test_a_folder_that_cannot_be_written_is_one_line(
    make_record: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "draw", lambda record: {})
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another folder"):
        report.write(make_record(), tmp_path / "file" / "run.html")


def test_without_matplotlib_the_command_is_told(make_record: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "perwatt.lab.pictures", None)
    monkeypatch.delattr("perwatt.lab.pictures", raising=False)
    with pytest.raises(InputError, match="pip install"):
        report.draw(make_record())
