"""Text IR becomes native code for the right vector unit; compiled objects are kept, shared, verified and rebuilt."""

import ctypes
import gc
import json
import os
import stat
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest

from perwatt.cpu import code_cache, compile_worker, jit, peak, team_code
from perwatt.cpu.compiler import Options, Target, host_target, machine_here, neon_target, target_of
from perwatt.errors import EngineCrashed

# Adds a number to 16 floats with vectors wider than most units; has a constant table and calls the C library.
SOURCE = """
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
declare i32 @sched_yield()
@table = private constant [2 x float] [float 1.0, float 2.0]
define void @kernel(ptr %arguments, i64 %thread, i64 %threads) {
  %x = load <16 x float>, ptr %arguments, align 4
  %at = getelementptr float, ptr @table, i64 %thread
  %one = load float, ptr %at
  %splat0 = insertelement <16 x float> poison, float %one, i64 0
  %splat = shufflevector <16 x float> %splat0, <16 x float> poison, <16 x i32> zeroinitializer
  %zero = call i32 @sched_yield()
  %sum = add i32 %zero, NUMBER
  %number = sitofp i32 %sum to float
  %added0 = insertelement <16 x float> poison, float %number, i64 0
  %added = shufflevector <16 x float> %added0, <16 x float> poison, <16 x i32> zeroinitializer
  %y = call <16 x float> @llvm.fma.v16f32(<16 x float> %x, <16 x float> %splat, <16 x float> %added)
  store <16 x float> %y, ptr %arguments, align 4
  ret void
}
"""


def source(number: int) -> str:
    return SOURCE.replace("NUMBER", str(number))


def result(code: jit.NativeCode) -> float:
    values = np.arange(16, dtype=np.float32)
    prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    prototype(code.address("kernel"))(values.ctypes.data, 0, 1, None)
    assert (np.diff(values) == 1).all()
    return float(values[0])


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERWATT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(name="compiled")
def _compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by one source with every compilation in this process."""
    sources: list[str] = []
    compile_object = jit.compile_object

    def counted(text: str, target: Target, options: Options) -> tuple[bytes, tuple[str, ...]]:
        sources.append(text)
        return compile_object(text, target, options)

    monkeypatch.setattr(jit, "compile_object", counted)
    monkeypatch.setattr(compile_worker, "compile_object", counted)
    return sources


def entries() -> list[Path]:
    return sorted(code_cache.folder().iterdir())


def test_code_runs_and_lives_as_long_as_it_is_held() -> None:
    code = jit.compile_module(source(3))
    assert code.functions == ("kernel",)
    address = code.address("kernel")
    gc.collect()
    assert result(code) == 3.0
    assert code.address("kernel") == address
    with pytest.raises(KeyError, match="no function 'other'; there are kernel"):
        code.address("other")


def test_a_module_is_compiled_once(compiled: list[str]) -> None:
    first = jit.compile_module(source(3))
    assert jit.compile_module(source(3)) is first
    both = jit.compile_modules([source(4), source(3), source(4)])
    assert both[0] is both[2]
    assert both[1] is first
    assert len(compiled) == 2
    del first, both
    gc.collect()
    assert result(jit.compile_module(source(3))) == 3.0  # from disk, without the compiler
    assert len(compiled) == 2
    jit.compile_module(source(3), options=Options(codegen=1))
    assert len(compiled) == 3


def test_bad_ir_is_refused_before_it_reaches_the_code_generator() -> None:
    with pytest.raises(RuntimeError, match="parsing error"):
        jit.compile_module("define void @f( {")
    # A value used before it is made parses, and would abort the process further on.
    with pytest.raises(RuntimeError, match="dominate"):
        jit.compile_module("define i64 @f() {\n %a = add i64 %b, 1\n %b = add i64 %a, 1\n ret i64 %b\n}")
    assert not code_cache.folder().exists()


def test_a_smaller_machine_gets_smaller_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    if host_target().triple.split("-")[0] != "x86_64":
        pytest.skip("the masks are x86's")
    here = machine_here()
    text = {isa: jit.assembly(source(1), replace(here, isa=isa)) for isa in ("avx512", "avx2", "portable")}
    assert ("zmm" in text["avx512"]) == (here.isa == "avx512")
    assert "zmm" not in text["avx2"]
    assert ("ymm" in text["avx2"]) == (here.isa in ("avx512", "avx2"))
    assert "zmm" not in text["portable"]
    assert "ymm" not in text["portable"]
    if here.isa in ("avx512", "avx2"):
        monkeypatch.setenv("PERWATT_MACHINE", "avx2")
        assert "zmm" not in jit.assembly(source(1))
        assert "vfmadd" in jit.assembly(source(1))
        assert result(jit.compile_module(source(1))) == 1.0
    monkeypatch.setenv("PERWATT_MACHINE", "portable")
    assert "ymm" not in jit.assembly(source(1))


def test_neon_code_can_be_generated_anywhere() -> None:
    try:
        target = neon_target()
        llvm.Target.from_triple(target.triple)
    except RuntimeError as error:
        pytest.skip(f"this LLVM has no ARM target: {error}")
    text = jit.assembly(peak.source(4), target)
    assert text.count("fmla") == peak.CHAINS[4]
    assert "fmaf" not in text
    team = jit.assembly(team_code.source("aarch64", "futex"), target)
    assert "yield" in team
    assert "fpcr" in team.lower()
    assert "syscall" in team


def test_every_fact_of_the_machine_and_compiler_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    host, options = host_target(), Options()
    keys = {
        code_cache.key("a", host, options),
        code_cache.key("b", host, options),
        code_cache.key("a", replace(host, processor="other"), options),
        code_cache.key("a", replace(host, features=host.features + ",-other"), options),
        code_cache.key("a", replace(host, triple="other"), options),
        code_cache.key("a", host, Options(passes=3)),
        code_cache.key("a", host, Options(codegen=0)),
    }
    monkeypatch.setattr(code_cache, "compiler_version", lambda: "llvmlite 99")
    keys.add(code_cache.key("a", host, options))
    assert len(keys) == 8
    if host.triple.startswith("x86_64"):  # a masked machine is another machine
        masked = {
            code_cache.key("a", target_of(replace(machine_here(), isa=isa)), options) for isa in ("avx2", "portable")
        }
        assert len(masked) == 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "foreign", "renamed"])
def test_a_damaged_entry_is_rebuilt(damage: str, compiled: list[str]) -> None:
    jit.compile_module(source(5))
    gc.collect()
    (entry,) = entries()
    whole = entry.read_bytes()
    if damage == "truncated":
        entry.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        entry.write_bytes(b"")
    elif damage == "flipped":
        middle = len(whole) // 2
        entry.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    elif damage == "foreign":
        entry.write_bytes(b"GIF89a" + whole)
    else:  # a good entry, but another module's
        jit.compile_module(source(6))
        (other,) = [path for path in entries() if path != entry]
        other.replace(entry)
        compiled.pop()
    gc.collect()
    assert result(jit.compile_module(source(5))) == 5.0
    assert len(compiled) == 2
    assert entry.read_bytes() == whole
    gc.collect()
    jit.compile_module(source(5))
    assert len(compiled) == 2


def test_without_a_folder_to_write_it_works_and_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PERWATT_CACHE", str(tmp_path / "file" / "below"))
    with pytest.warns(RuntimeWarning, match="not kept.*PERWATT_CACHE"):
        assert result(jit.compile_module(source(7))) == 7.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert result(jit.compile_module(source(8))) == 8.0


def test_a_read_only_folder_still_serves_what_it_holds(compiled: list[str]) -> None:
    jit.compile_module(source(9))
    folder = code_cache.folder()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write everywhere")
        gc.collect()
        assert result(jit.compile_module(source(9))) == 9.0
        assert len(compiled) == 1
        with pytest.warns(RuntimeWarning, match="not kept"):
            assert result(jit.compile_module(source(10))) == 10.0
    finally:
        folder.chmod(stat.S_IRWXU)


def test_an_interrupted_write_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        jit.compile_module(source(11))
    assert entries() == []


def test_helpers_compile_what_is_missing(compiled: list[str]) -> None:
    jit.compile_module(source(0))
    sources = [source(i) for i in range(12)]
    codes = jit.compile_modules(sources)
    assert [result(code) for code in codes] == list(range(12))
    assert len(entries()) == 12
    del codes
    gc.collect()
    before = len(compiled)
    assert [result(code) for code in jit.compile_modules(sources)] == list(range(12))
    assert len(compiled) == before


@pytest.mark.slow
def test_helpers_make_the_same_bytes_and_report_bad_ir(monkeypatch: pytest.MonkeyPatch) -> None:
    target, options = target_of(), Options()
    sources = [source(i) for i in range(4)]
    here = [compile_worker.compile_object(text, target, options) for text in sources]
    # The parent leaves the work to its helpers, so that theirs is what is seen.
    monkeypatch.setattr(compile_worker._Work, "compile_here", lambda work: None)
    assert compile_worker.compile_objects(sources, target, options, processes=2) == here
    with pytest.raises(RuntimeError, match="parsing error"):
        compile_worker.compile_objects([*sources, "define"], target, options, processes=2)


def test_a_helper_that_cannot_start_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    target, options = target_of(), Options()
    here = [compile_worker.compile_object(source(i), target, options) for i in range(3)]
    for executable in ("", "/nowhere/python", "/bin/false"):
        monkeypatch.setattr(sys, "executable", executable)
        assert compile_worker.compile_objects([source(i) for i in range(3)], target, options, processes=2) == here


def test_a_helper_that_dies_at_work_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mortal:
        """A helper that answers once."""

        answers = 0

        def __call__(self, pipe: object) -> object:
            self.answers += 1
            return ({"functions": []}, b"") if self.answers == 1 else None

    monkeypatch.setattr(compile_worker, "_receive", Mortal())
    monkeypatch.setattr(compile_worker._Work, "compile_here", lambda work: None)
    with pytest.raises(EngineCrashed, match="the compiler died"):
        compile_worker.compile_objects([source(1), source(2)], target_of(), Options(), processes=2)


@pytest.mark.slow
def test_two_processes_may_race_for_an_empty_cache() -> None:
    script = (
        "import json, sys; from perwatt.cpu import jit; sources = json.load(sys.stdin); "
        "print(len(jit.compile_modules(sources[:6])) + len(jit.compile_modules(sources[6:])))"
    )
    text = json.dumps([source(i) for i in range(12)])
    racers = [
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write(text)
        racer.stdin.close()
        racer.stdin = None
    assert [racer.communicate(timeout=30)[0] for racer in racers] == ["12\n", "12\n"]
    assert len(entries()) == 12
    assert all(code_cache.fetch(entry.name) is not None for entry in entries())


@pytest.mark.slow
@pytest.mark.alone
def test_measured_peaks_are_of_this_world() -> None:
    speed = peak.multiply_adds(1)
    assert 0.1 < speed < 2000
    assert 0.1 < peak.memory_read(1) < 2000
