"""The rooms import one way only. Lazy and type-only imports count: a cycle means a thing lives in the wrong room."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "perwatt"
LEAVES = {"errors", "machine", "settings"}
# What each room may import, and the outside libraries that only it may touch.
ROOMS: dict[str, set[str]] = {
    "graph": set(),
    "networks": {"graph"},
    "passes": {"graph"},
    "plan": {"graph"},
    "cpu": {"plan", "graph"},
    "gpu": {"plan", "graph"},
    "run": {"graph", "passes", "plan", "cpu", "gpu"},
    "package": {"run", "networks", "graph"},
    "data": {"package", "graph"},
    "lab": {"data", "package", "run", "networks", "graph"},
    "serve": {"package", "run"},
    "train": {"data", "package", "networks", "graph"},
    "studio": {"package", "run", "networks", "graph", "passes", "plan", "cpu", "gpu", "data", "lab", "serve", "train"},
}
# Outside libraries, and the places that may import them (path prefixes below perwatt/).
DOORS: dict[str, tuple[str, ...]] = {
    "onnx": ("graph/", "lab/engines/"),
    "google": ("graph/", "serve/"),
    "llvmlite": ("cpu/",),
    "torch": ("gpu/", "train/", "lab/engines/"),
    "triton": ("gpu/",),
    "safetensors": ("train/",),
    "PIL": ("package/", "data/"),
    "onnxruntime": ("lab/engines/",),
    "openvino": ("lab/engines/",),
    "ncnn": ("lab/engines/",),
    "pynvml": ("lab/meters/",),
    "matplotlib": ("lab/", "train/"),
    "skimage": ("lab/",),
    "psutil": ("lab/",),
    "starlette": ("serve/",),
    "uvicorn": ("serve/",),
    "prometheus_client": ("serve/",),
    "httptools": ("serve/",),
    "uvloop": ("serve/",),
    "orjson": ("serve/",),
    "grpc": ("serve/",),
    "typer": ("cli",),
    "rich": ("cli", "lab/", "package/", "data/", "train/"),
}
FORBIDDEN_NAMES = {"utils", "helpers", "common", "misc", "manager", "base", "core", "lib"}
SOURCES = sorted(ROOT.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Return every module name a file imports, wherever in the file the statement stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: line {node.lineno}: import from the full name, not relatively"
            assert node.module is not None
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                names.add(argument.value)
    return names


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    room = room_of(path)
    inside = {name.split(".")[1] for name in imported(path) if name.startswith("perwatt.")} - {"__version__"}
    if room in {"__init__", "__main__"} or room.startswith("cli"):  # the front door sees every room
        return
    if room in LEAVES:
        assert inside <= LEAVES, f"a leaf file imports no room, this one imports {inside}"
        return
    allowed = ROOMS[room] | LEAVES | {room}
    assert inside <= allowed, f"{room} may import {sorted(allowed)}, this file imports {sorted(inside - allowed)} too"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_outside_library_enters_by_its_door(path: Path) -> None:
    where = str(path.relative_to(ROOT))
    for name in imported(path):
        top = name.split(".")[0]
        if top in DOORS:
            assert where.startswith(DOORS[top]), f"{top} may be imported in {DOORS[top]}, not in {where}"


def test_every_folder_is_a_room_of_the_table() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert folders <= set(ROOMS), f"not in the table: {folders - set(ROOMS)}"


def test_names_say_what_they_hold_and_files_stay_short() -> None:
    for path in [*SOURCES, *Path(__file__).parent.rglob("*.py")]:
        parts = {part.removesuffix(".py") for part in path.relative_to(ROOT.parent).parts}
        assert not parts & FORBIDDEN_NAMES, f"{path}: names like {FORBIDDEN_NAMES} hold anything and say nothing"
        lines = len(path.read_text().splitlines())
        assert lines <= 600, f"{path} has {lines} lines, the stop is 600: it is probably two nouns"


def test_only_settings_reads_the_environment() -> None:
    for path in SOURCES:
        source = path.read_text()
        reads = "os.environ" in source or "getenv" in source
        allowed = {ROOT / "settings.py"} | set((ROOT / "lab").rglob("worker.py"))
        assert not reads or path in allowed, f"{path} reads the environment; put the variable into settings.py"
