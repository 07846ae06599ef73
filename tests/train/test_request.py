"""Whatever would stop a run later is found before its first step, before its folder is made, and told in one line."""

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_folders import class_folders, encoded

from perwatt import cli
from perwatt.data import DataSet
from perwatt.data.look import look
from perwatt.errors import DataError, InputError, OutputError, TrainingError
from perwatt.networks import build
from perwatt.train import request
from perwatt.train.batches import Batch
from perwatt.train.learner import Learner
from perwatt.train.module import training_form
from perwatt.train.recipe import Recipe, recipe_for
from perwatt.train.request import Request, load, opened, prepared_data, require_moments, require_space, save, start
from perwatt.train.training import Watching, train

RECIPE = recipe_for("quick", "squeezenet1.1", grey=False, epochs=1, batch=4)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERWATT_CACHE", str(tmp_path / "cache"))


def asked(data: Path, **changes: object) -> Request:
    whole: dict[str, object] = {"network": "squeezenet1.1", "size": 64, "recipe": RECIPE, "seed": 1}
    return Request(data=str(data), out=data.parent / "run", **{**whole, **changes})  # type: ignore[arg-type]


def prepared(
    request: Request, look: Callable[..., object], say: Callable[[str], object]
) -> tuple[DataSet, dict[str, str]]:
    return prepared_data(request, opened(request), look, say)  # type: ignore[arg-type]


def test_a_good_set_is_split_and_remembered(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", {"cat": 12, "dog": 30})
    data, digests = prepared(asked(root), look, print)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 38, "validation": 4}
    same, again = prepared(asked(root, digests=digests), look, print)
    assert again == digests
    assert same.split("train").pictures == data.split("train").pictures
    (root / "cat" / "003.png").write_bytes(encoded(0, 99))
    with pytest.raises(TrainingError, match="that the run in"):
        prepared(asked(root, digests=digests), look, print)


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ({"cat": 4, "dog": 1}, "1 of 'dog'"),
        ({"cat": 4, "dog": 0}, "none of 'dog'"),
        ({"cat": 9}, "at least 2 classes"),
        ({"cat": 0, "dog": 0}, "found none"),
    ],
)
def test_classes_that_cannot_be_learned_are_named(tmp_path: Path, counts: dict[str, int], told: str) -> None:
    with pytest.raises(DataError, match=told):
        prepared(asked(class_folders(tmp_path / "set", counts)), look, print)


def test_a_class_of_one_is_refused_beside_a_validation_split_too(tmp_path: Path) -> None:
    class_folders(tmp_path / "set" / "train", {"cat": 4, "dog": 1})
    class_folders(tmp_path / "set" / "val", {"cat": 1, "dog": 1}, first=50)
    with pytest.raises(DataError, match="1 of 'dog'"):
        prepared(asked(tmp_path / "set"), look, print)


def test_broken_pictures_are_named_or_left_out_when_asked(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", {"cat": 6, "dog": 3})
    (root / "cat" / "002.png").write_bytes(encoded(0, 2)[:-30])
    with pytest.raises(DataError, match=r"1 broken.*002\.png.*--skip-broken"):
        prepared(asked(root), look, print)
    told: list[str] = []
    data, _ = prepared(asked(root, skip_broken=True), look, told.append)
    assert len(told) == 1
    assert told[0].startswith(f"left out  train: {root / 'cat' / '002.png'}")
    assert sum(len(split) for split in data.splits.values()) == 8
    for number in (0, 1):
        (root / "dog" / f"{number:03d}.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 'dog'"):  # what is left is checked too
        prepared(asked(root, skip_broken=True), look, print)


def test_pictures_that_would_be_learned_and_validated_on_are_told(tmp_path: Path) -> None:
    told: list[str] = []
    root = class_folders(tmp_path / "set", {"cat": 6, "dog": 3})
    prepared(asked(root), look, told.append)
    assert not told
    (root / "dog" / "again.png").write_bytes(encoded(0, 2))
    prepared(asked(root), look, told.append)
    assert len(told) == 1
    assert told[0].startswith("1 pictures are there more than once")


def test_a_size_too_small_for_the_network_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"size.*at least"):
        start(asked(tmp_path / "set", size=8), ("a", "b"))


def test_a_size_gives_the_network_and_its_preprocessing(tmp_path: Path) -> None:
    begin = start(asked(tmp_path / "set", size=64), ("a", "b", "c"))
    assert begin.graph.values["data"].shape == (1, 3, 64, 64)
    assert begin.graph.values["prob"].shape == (1, 3)
    assert begin.preprocessing.size == (64, 64)
    assert begin.preprocessing.resize_to == round(256 * 64 / 227)


def test_googlenet_learns_with_auxiliary_answers_and_is_deployed_without(tmp_path: Path) -> None:
    begin = start(asked(tmp_path / "set", network="googlenet", size=64), ("a", "b", "c"))
    assert len(begin.graph.outputs) == 3
    assert begin.deployed.outputs == ("prob",)


def test_no_disk_space_is_told_with_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    graph = build("squeezenet1.1", classes=2, size=64)
    weights = sum(array.nbytes for array in graph.constants.values())
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1, 1, 5 * weights + (32 << 20)))
    with pytest.raises(OutputError, match=r"MiB of disk.*are free"):
        require_space(asked(tmp_path / "set"), graph)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1, 1, 20 * weights + (32 << 20)))
    require_space(asked(tmp_path / "set"), graph)


def test_a_gpu_that_is_not_there_and_halves_on_a_cpu_are_refused() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="there is none"):
            request.require_device("cuda", RECIPE)
    with pytest.raises(InputError, match="fp32 on a CPU"):
        request.require_device("cpu", Recipe(precision="bf16"))
    with pytest.raises(InputError, match="cpu, cuda"):
        request.require_device("tpu", RECIPE)


def test_a_request_comes_back_as_it_was(tmp_path: Path) -> None:
    whole = asked(tmp_path / "set", skip_broken=True, digests={"train": "ab"}, package=Path("start.perwatt"), size=None)
    save(whole)
    assert load(whole.out) == (whole, torch.__version__)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"version": 1}', '{"version": 1, "request": {}, "torch": 1}']
)
def test_a_damaged_run_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / request.RUN_FILE).write_text(content)
    with pytest.raises(TrainingError, match=r"run\.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "a data set"),
        (["{set}"], "--network"),
        (["{set}", "--network", "lenett"], "--network"),
        (["{set}", "--network", "squeezenet1.1", "--size", "4"], "size"),
        (["{set}", "--network", "squeezenet1.1", "--recipe", "fast"], "recipe"),
        (["{set}", "--network", "squeezenet1.1", "--batch", "6", "--accumulate", "4"], "divides"),
        (["{set}", "--network", "squeezenet1.1", "--precision", "bf16"], "fp32 on a CPU"),
        (["{set}", "--from", "{set}/none.perwatt"], "none.perwatt"),
        (["nowhere", "--network", "squeezenet1.1"], "nowhere"),
        (["--resume"], "--out"),
        (["--resume", "--out", "{set}"], "run.json"),
    ],
)
def test_the_command_line_says_it_in_one_line_and_makes_no_folder(
    tmp_path: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = class_folders(tmp_path / "set", {"cat": 4, "dog": 4})
    out = [] if "--resume" in arguments else ["--out", str(tmp_path / "run")]
    device = ["--device", "cpu"] if arguments and "--resume" not in arguments else []
    code = cli.run(["train", *(each.format(set=root) for each in arguments), *out, *device])
    lines = capsys.readouterr().err.splitlines()
    assert code == cli.EXIT_USER
    assert len(lines) == 1
    assert told in lines[0]
    assert not (tmp_path / "run").exists()


def test_what_needs_no_picture_is_told_before_any_is_decoded(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", {"cat": 4, "dog": 4})

    def never(data: object) -> dict[str, tuple[object, ...]]:
        raise AssertionError("pictures were decoded")

    watching = Watching(never, print, print, print, lambda: False)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"size.*at least"):
        train(asked(root, size=8), watching)
    (root / "dog" / "none").mkdir()
    for each in sorted((root / "dog").glob("*.png"))[1:]:
        each.unlink()
    with pytest.raises(DataError, match="1 of 'dog'"):
        train(asked(root), watching)
    save(asked(root))
    with pytest.raises(TrainingError, match="there is a run in it"):
        train(asked(root), watching)


@pytest.mark.parametrize(
    ("size", "batch", "accumulate", "pictures", "fits"),
    [
        (32, 2, 1, 100, True),
        (32, 1, 1, 100, False),  # one image, whose last maps are one pixel
        (64, 1, 1, 100, True),
        (32, 8, 8, 100, False),
        (32, 8, 4, 100, True),
        (32, 8, 4, 3, False),  # fewer pictures than a batch: parts of one
        (32, 64, 2, 5, True),  # three and two
        (32, 9, 3, 7, False),  # three, three, one
    ],
)
def test_a_part_too_small_for_batch_normalisation_is_told(
    size: int, batch: int, accumulate: int, pictures: int, fits: bool
) -> None:
    graph = build("resnet50", classes=2, size=size)
    recipe = Recipe(batch=batch, accumulate=accumulate, warmup_epochs=0)
    if not fits:
        with pytest.raises(InputError, match=r"at least 2 images.*--batch"):
            require_moments(recipe, graph, pictures)
        return
    require_moments(recipe, graph, pictures)
    images = np.random.default_rng(1).standard_normal((min(batch, pictures), 3, size, size)).astype(np.float32)
    learner = Learner(training_form(graph), recipe, 1, 1)
    learner.learn(Batch(images, np.arange(len(images)) % 2))
    assert learner.step == 1
