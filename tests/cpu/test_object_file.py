"""Objects linked without LLVM do what LLVM makes of them, and a start with all kernels on disk loads no LLVM."""

import ctypes
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from perwatt.cpu import jit, object_file, target_file
from perwatt.cpu.compiler import compile_object, host_target, target_of

ELF_AMD64 = sys.platform == "linux" and platform.machine() == "x86_64"
here_only = pytest.mark.skipif(not ELF_AMD64, reason="objects of this system are LLVM's to link")

# Doubles and shifts 8 floats by constants of several sizes, clears what follows by a call, and returns through a
# function of its own.
WHOLE = """
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
@table = private constant [4 x i64] [i64 3, i64 5, i64 7, i64 11]
define internal i64 @pick(i64 %at) noinline {
  %place = getelementptr i64, ptr @table, i64 %at
  %value = load i64, ptr %place
  ret i64 %value
}
define i64 @kernel(ptr %floats, i64 %bytes, i64 %at) {
  %x = load <8 x float>, ptr %floats, align 4
  %two = fmul <8 x float> %x, <float 2.0, float 2.0, float 2.0, float 2.0, float 2.0, float 2.0, float 2.0, float 2.0>
  %y = fadd <8 x float> %two, <float 1.0, float 2.0, float 3.0, float 4.0, float 5.0, float 6.0, float 7.0, float 8.0>
  store <8 x float> %y, ptr %floats, align 4
  %rest = getelementptr i8, ptr %floats, i64 32
  call void @llvm.memset.p0.i64(ptr %rest, i8 0, i64 %bytes, i1 false)
  %value = call i64 @pick(i64 %at)
  ret i64 %value
}
"""
REFUSED = {
    "variables": "@count = global i64 5\ndefine i64 @kernel() {\n  %v = load i64, ptr @count\n  ret i64 %v\n}",
    "an unknown function": "declare i64 @perwatt_knows_none()\n"
    "define i64 @kernel() {\n  %v = call i64 @perwatt_knows_none()\n  ret i64 %v\n}",
    "an address of the process": "@environ = external global ptr\n"
    "define i64 @kernel() {\n  %v = ptrtoint ptr @environ to i64\n  ret i64 %v\n}",
}


def compiled(source: str) -> tuple[bytes, tuple[str, ...]]:
    return compile_object(source, target_of())


@here_only
def test_code_and_constants_and_calls() -> None:
    image, functions = compiled(WHOLE)
    assert functions == ("kernel",)
    linked = object_file.link(image, functions)
    assert linked is not None
    kernel = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(linked["kernel"])
    for at, value in enumerate((3, 5, 7, 11)):
        floats = np.arange(100, dtype=np.float32)
        assert kernel(floats.ctypes.data, 4 * 80, at) == value
        assert np.array_equal(floats[:8], 2 * np.arange(8) + np.arange(1, 9))
        assert not floats[8:88].any()
        assert np.array_equal(floats[88:], np.arange(88, 100))
    with pytest.raises(KeyError):
        linked["other"]


@here_only
def test_many_at_once_and_again_after_they_are_gone() -> None:
    image, functions = compiled(WHOLE)
    for _ in range(3):
        several = [object_file.link(image, functions) for _ in range(50)]
        addresses = {each["kernel"] for each in several if each is not None}
        assert len(addresses) == 50


@here_only
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_understood_is_left_to_llvm(what: str) -> None:
    image, functions = compiled(REFUSED[what])
    assert object_file.link(image, functions) is None
    if what != "an unknown function":
        code = jit.load_object(image, functions)
        result = ctypes.CFUNCTYPE(ctypes.c_int64)(code.address("kernel"))()
        assert result == 5 if what == "variables" else result


def test_a_missing_function_and_other_files_are_refused() -> None:
    image, functions = compiled(WHOLE)
    assert object_file.link(image, (*functions, "other")) is None
    assert object_file.link(b"MZ" + image[2:], functions) is None
    assert object_file.link(b"", functions) is None
    if image.startswith(object_file.HEADER):
        other = bytearray(image)
        other[18] = 183  # an object for 64-bit ARM
        assert object_file.link(bytes(other), functions) is None


def _start(cache: Path, words: Sequence[str]) -> bool:
    """Return whether a fresh process that does something has loaded LLVM."""
    code = f"import sys, numpy as np; {'; '.join(words)}; print('llvmlite.binding' in sys.modules)"
    environment = {**os.environ, "PERWATT_CACHE": str(cache)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip() == "True"


@pytest.mark.slow
def test_a_second_start_does_without_llvm(tmp_path: Path) -> None:
    words = [
        "import perwatt",
        "from perwatt.networks import build",
        "model = perwatt.compile(build('lenet', 1), tune='estimate')",
        "shape = next(iter(model.inputs.values())).shape",
        "assert np.isfinite(model(np.ones(shape, np.float32))).all()",
    ]
    assert _start(tmp_path, words)
    assert _start(tmp_path, words) == (not ELF_AMD64)


def test_what_llvm_said_is_kept_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"triple": host_target().triple, "features": "+one,-two"}  # asked before the cache is the test's own
    monkeypatch.setenv("PERWATT_CACHE", str(tmp_path))
    assert target_file.load() is None
    target_file.keep(facts)
    if sys.platform != "linux":
        assert target_file.load() in (None, facts)
        return
    assert target_file.load() == facts
    (path,) = (tmp_path / "targets").iterdir()
    whole = path.read_text()
    changed = json.loads(whole)
    changed["facts"]["features"] = "+one,+two"
    for damaged in (json.dumps(changed), whole[:-5], "", "[]", '{"facts": 1, "digest": 2}'):
        path.write_text(damaged)
        assert target_file.load() is None
    target_file.keep(facts)
    assert target_file.load() == facts
    # Another processor, or another LLVM, is asked itself.
    for name in ("_processor", "_library"):
        with monkeypatch.context() as other:
            other.setattr(target_file, name, lambda: "another")
            assert target_file.load() is None
        with monkeypatch.context() as other:
            other.setattr(target_file, name, lambda: None)
            assert target_file.load() is None
            target_file.keep(facts)
    assert len(list((tmp_path / "targets").iterdir())) == 1
