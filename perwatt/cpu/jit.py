"""Text LLVM IR -> native code of this process: verify, optimise, emit an object, link it, hand out addresses.

Objects are linked by ORC: forty kernels load in about 20 ms, each library frees its pages when the last NativeCode
that uses it goes, and the code model can be small because one library's code and constants lie in one allocation.
"""

import itertools
import threading
from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from perwatt import settings
from perwatt.machine import Isa, Machine, this_machine

# LLVM's names of what a smaller vector unit lacks; switching off the root feature drops all that imply it.
AVX512 = ("avx512f", "avx10.1", "avx10.2", "amx-tile", "evex512")
AVX2 = ("avx",)
_numbers = itertools.count()
_lock = threading.Lock()


@dataclass(frozen=True)
class Target:
    """What code is generated for: an LLVM triple, processor name and feature string."""

    triple: str
    processor: str
    features: str


@dataclass(frozen=True)
class Options:
    """How hard LLVM tries: level of the passes over the IR, and of code generation (0 to 3 each)."""

    passes: int = 1
    codegen: int = 3


DEFAULT_OPTIONS = Options()


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


@cache
def start_llvm() -> None:
    """Make LLVM ready for the processor of this process (once)."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


@cache
def host_target() -> Target:
    """Return the target of the processor this process runs on, with every feature it has."""
    start_llvm()
    return Target(llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())


@cache
def _isa_here(masked: str) -> Isa:
    # Keyed by the setting, so that a test or a long-lived program may change it; describing the machine takes a while.
    return this_machine().isa


def target_of(machine: Machine | None = None) -> Target:
    """Return the target for a machine, None: this one as PERWATT_MACHINE masks it.

    The processor stays the one that is here, for its costs and schedules; vector units above the machine's are off.
    """
    host = host_target()
    isa = machine.isa if machine is not None else _isa_here(settings.text("PERWATT_MACHINE"))
    if isa in ("avx512", "neon") or not host.triple.startswith("x86_64"):
        return host
    known = {entry[1:]: entry[0] for entry in host.features.split(",")}
    kept = [sign + name for name, sign in known.items() if not name.startswith(("avx512", "avx10", "amx"))]
    missing = AVX512 if isa == "avx2" else AVX512 + AVX2
    return Target(host.triple, host.processor, ",".join([*kept, *(f"-{name}" for name in missing if name in known)]))


def _optimised(source: str, target: Target, options: Options) -> tuple[Any, Any]:
    """Return (TargetMachine, verified and optimised module); raises RuntimeError with LLVM's words on bad IR."""
    start_llvm()
    module = llvm.parse_assembly(source)
    module.verify()
    module.triple = target.triple
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.processor, features=target.features, opt=options.codegen, reloc="pic", codemodel="small"
    )
    module.data_layout = str(machine.target_data)
    tuning = llvm.create_pipeline_tuning_options(speed_level=options.passes)
    tuning.loop_vectorization = False
    tuning.slp_vectorization = False
    tuning.loop_unrolling = False
    tuning.loop_interleaving = False
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    return machine, module


def _defined(module: Any) -> tuple[str, ...]:
    return tuple(
        function.name
        for function in module.functions
        if not function.is_declaration and function.linkage.name == "external"
    )


def compile_object(source: str, target: Target, options: Options = DEFAULT_OPTIONS) -> tuple[bytes, tuple[str, ...]]:
    """Return (object file, names of the functions it exports) for one module of text IR.

    Raises RuntimeError with LLVM's message when the IR does not parse or verify: a defect of the emitter.
    """
    machine, module = _optimised(source, target, options)
    return machine.emit_object(module), _defined(module)


def assembly(source: str, machine: Machine | None = None, options: Options = DEFAULT_OPTIONS) -> str:
    """Return the assembly text that compile_module would make of the same IR, for people and tests to read."""
    target_machine, module = _optimised(source, target_of(machine), options)
    return str(target_machine.emit_assembly(module))


@cache
def _linker() -> Any:
    # JITLink rather than RuntimeDyld: it places a library's sections side by side, which the small model needs.
    start_llvm()
    target = host_target()
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.processor, features=target.features, opt=2, reloc="pic", codemodel="small"
    )
    return llvm.create_lljit_compiler(machine, use_jit_link=True)


def load_object(image: bytes, functions: tuple[str, ...], name: str = "module") -> NativeCode:
    """Link an object file into this process and return its code; functions are the exported names to look up."""
    builder = llvm.JITLibraryBuilder().add_object_img(image).add_current_process()
    for function in functions:
        builder.export_symbol(function)
    with _lock:
        tracker = builder.link(_linker(), f"{name}.{next(_numbers)}")
    return NativeCode(name, tracker, functions)


def compile_module(
    source: str, machine: Machine | None = None, name: str = "module", options: Options = DEFAULT_OPTIONS
) -> NativeCode:
    """Return native code for one module of text IR, for the processor of this process limited to machine.isa.

    Raises RuntimeError with LLVM's message when the IR does not parse or verify: a defect of the emitter.
    """
    image, functions = compile_object(source, target_of(machine), options)
    return load_object(image, functions, name)


def compiler_version() -> str:
    """Return the version of llvmlite and of the LLVM inside it."""
    return f"llvmlite {llvmlite.__version__}, LLVM {'.'.join(map(str, llvm.llvm_version_info))}"
