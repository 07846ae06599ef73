"""The contact sheet: some pictures of every class side by side, as one PNG, for the eye to find what counts cannot."""

from collections.abc import Mapping
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from perwatt.data.dataset import DataSet
from perwatt.package.preprocessing import FILTERS, Photo

CELL = 84
GAP = 4
COLUMNS = 12
MOST_CLASSES = 40
_LABEL_WIDTH = 190
_HEAD = 34
_PAPER, _INK, _FAINT, _EMPTY = (255, 255, 255), (30, 30, 34), (120, 120, 126), (238, 238, 240)


def contact_sheet(data: DataSet, split: str, broken: Mapping[tuple[str, int], str], seed: int = 1) -> bytes:
    """Return a PNG with a row per class: its name, its count, and pictures of it chosen by the seed.

    Pictures are fitted whole into their cell, small ones enlarged by whole pixels; broken ones are left out. More than
    MOST_CLASSES classes are thinned evenly.
    """
    chosen = data.split(split)
    places = np.unique(np.linspace(0, len(data.classes) - 1, min(MOST_CLASSES, len(data.classes))).round().astype(int))
    width = _LABEL_WIDTH + COLUMNS * (CELL + GAP) + GAP
    sheet = Image.new("RGB", (width, _HEAD + len(places) * (CELL + GAP) + GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(15), ImageFont.load_default(12)
    shown = "" if len(places) == len(data.classes) else f", {len(places)} shown"
    head = f"{data.name}: {split}, {len(chosen):,} pictures of {len(data.classes)} classes{shown}"
    draw.text((GAP + 6, 9), head, _INK, large)
    for row, label in enumerate(places):
        top = _HEAD + row * (CELL + GAP)
        members = np.flatnonzero(chosen.labels == label)
        draw.text((GAP + 6, top + CELL // 2 - 18), _fitted(data.classes[label], large, _LABEL_WIDTH - 16), _INK, large)
        draw.text((GAP + 6, top + CELL // 2 + 3), f"{len(members):,}", _FAINT, small)
        whole = np.array([index for index in members if (split, int(index)) not in broken], dtype=np.int64)
        drawn = np.random.default_rng((seed, int(label))).permutation(whole)[:COLUMNS]
        for column in range(COLUMNS):
            left = _LABEL_WIDTH + column * (CELL + GAP)
            draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), fill=_EMPTY)
            if column < len(drawn):
                thumb = _thumb(chosen.photo(int(drawn[column])))
                sheet.paste(thumb, (left + (CELL - thumb.width) // 2, top + (CELL - thumb.height) // 2))
    buffer = BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _thumb(photo: Photo) -> Photo:
    longest = max(photo.size)
    if longest <= CELL:
        times = CELL // longest
        return photo.resize((photo.width * times, photo.height * times), FILTERS["nearest"])
    size = (max(1, photo.width * CELL // longest), max(1, photo.height * CELL // longest))
    return photo.resize(size, FILTERS["box"])


def _fitted(text: str, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont", width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
