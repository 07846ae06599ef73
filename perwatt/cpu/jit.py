"""Text LLVM IR -> native code of this process: from the cache on disk or the compiler, linked, with addresses.

An object's pages are freed when the last NativeCode that uses it goes, and the code model can be small because one
object's code and constants lie in one allocation. Objects that `object_file` does not understand are linked by LLVM's
ORC.
"""

import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from perwatt.cpu import code_cache, object_file
from perwatt.cpu.compile_worker import compile_objects
from perwatt.cpu.compiler import (
    DEFAULT_OPTIONS,
    Options,
    Target,
    assembly,
    compile_object,
    host_target,
    llvm_here,
    machine_here,
    target_of,
)
from perwatt.machine import Machine

__all__ = ["NativeCode", "Options", "Target", "assembly", "compile_module", "compile_modules", "target_of"]

# Starting a helper costs as much as compiling a few modules.
MODULES_WORTH_HELPERS = 8
MOST_PROCESSES = 4

_numbers = itertools.count()


class NativeCode:
    """Machine code in this process; the addresses stay valid as long as this object lives."""

    def __init__(self, name: str, tracker: Any, functions: tuple[str, ...]) -> None:
        self.name = name
        self.functions = functions
        self._tracker = tracker

    def address(self, function: str) -> int:
        """Return the address of one function of the module.

        Raises KeyError when the module defines no such function.
        """
        if function not in self.functions:
            raise KeyError(f"{self.name}: no function {function!r}; there are {', '.join(self.functions)}")
        return int(self._tracker[function])


_loaded: "weakref.WeakValueDictionary[str, NativeCode]" = weakref.WeakValueDictionary()


@cache
def _linker() -> Any:
    # JITLink rather than RuntimeDyld: it places a library's sections side by side, which the small model needs.
    llvm, target = llvm_here(), host_target()
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.processor, features=target.features, opt=2, reloc="pic", codemodel="small"
    )
    return llvm.create_lljit_compiler(machine, use_jit_link=True)


def load_object(image: bytes, functions: tuple[str, ...], name: str = "module") -> NativeCode:
    """Link an object file into this process and return its code; functions are the exported names to look up."""
    linked = object_file.link(image, functions)
    if linked is not None:
        return NativeCode(name, linked, functions)
    builder = llvm_here().JITLibraryBuilder().add_object_img(image).add_current_process()
    for function in functions:
        builder.export_symbol(function)
    tracker = builder.link(_linker(), f"{name}.{next(_numbers)}")  # a library's name can be used once only
    return NativeCode(name, tracker, functions)


def compile_module(
    source: str, machine: Machine | None = None, name: str = "module", options: Options = DEFAULT_OPTIONS
) -> NativeCode:
    """Return native code for one module of text IR: the copy in this process, on disk, or a new one.

    The code is for the processor of this process limited to the machine's vector unit. Raises RuntimeError with LLVM's
    message when the IR does not parse or verify: a defect of the emitter.
    """
    return compile_modules([source], machine, [name], options)[0]


def compile_emitted(
    modules: Mapping[str, Callable[[], str]], emitter: str, machine: Machine | None = None
) -> dict[str, NativeCode]:
    """Return native code of modules by name; one whose object is kept is not even written as IR.

    A name must hold all that a module is specialised on, `emitter` identify the code that writes it (a digest):
    together they stand for the IR. Raises as compile_module does.
    """
    target = target_of(machine)
    entries = {name: code_cache.key(f"{emitter} {name}", target, DEFAULT_OPTIONS) for name in modules}
    found: dict[str, NativeCode] = {}
    for name, entry in entries.items():
        here = _loaded.get(entry)
        if here is None and (kept := code_cache.fetch(entry)) is not None:
            here = _loaded[entry] = load_object(kept[0], kept[1], name)
        if here is not None:
            found[name] = here
    missing = [name for name in modules if name not in found]
    for name, compiled in zip(missing, _compiled([modules[name]() for name in missing], target), strict=True):
        code_cache.store(entries[name], compiled)
        found[name] = _loaded[entries[name]] = load_object(compiled[0], compiled[1], name)
    return found


def _compiled(
    sources: Sequence[str], target: Target, options: Options = DEFAULT_OPTIONS
) -> Sequence[code_cache.Compiled]:
    """Return the object of each source; many are compiled by several processes."""
    if len(sources) > MODULES_WORTH_HELPERS:
        return compile_objects(list(sources), target, options, min(MOST_PROCESSES, machine_here().cores))
    return [compile_object(source, target, options) for source in sources]


def compile_modules(
    sources: Sequence[str],
    machine: Machine | None = None,
    names: Sequence[str] | None = None,
    options: Options = DEFAULT_OPTIONS,
) -> list[NativeCode]:
    """Return compile_module of each source; many that are on no disk yet are compiled by several processes."""
    target = target_of(machine)
    entries = [code_cache.key(source, target, options) for source in sources]
    wanted = dict(zip(entries, sources, strict=True))  # each once
    code = {entry: here for entry in wanted if (here := _loaded.get(entry)) is not None}
    objects = {entry: kept for entry in wanted if entry not in code and (kept := code_cache.fetch(entry)) is not None}
    missing = [entry for entry in wanted if entry not in code and entry not in objects]
    made = _compiled([wanted[entry] for entry in missing], target, options)
    for entry, compiled in zip(missing, made, strict=True):
        code_cache.store(entry, compiled)
        objects[entry] = compiled
    titles = dict(zip(entries, names if names is not None else ["module"] * len(sources), strict=True))
    for entry, (image, functions) in objects.items():
        # Two threads may both link an entry: each keeps its own, the later one is found from then on.
        code[entry] = _loaded[entry] = load_object(image, functions, titles[entry])
    return [code[entry] for entry in entries]
