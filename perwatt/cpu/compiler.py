"""Text LLVM IR -> object bytes: which target, which passes, verify first.

LLVM's middle passes run at a low level with vectorising and unrolling off: kernels arrive as vectors with their loops
laid out, and hoisting and re-rolling only costs registers.
"""

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Any

from perwatt import settings
from perwatt.cpu import target_file
from perwatt.machine import Machine, this_machine

# LLVM's names of what a smaller vector unit lacks; switching off the root feature drops all that imply it.
AVX512 = ("avx512f", "avx10.1", "avx10.2", "amx-tile")
AVX2 = ("avx",)


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


@cache
def llvm_here() -> Any:
    """Return LLVM's bindings, made ready for the processor of this process.

    Loaded only when something is to be compiled: a start that finds its kernels on disk does without.
    """
    llvm = importlib.import_module("llvmlite.binding")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


@cache
def _facts() -> dict[str, str]:
    """Return LLVM's words for the target of this process, and which LLVM they are of."""
    kept = target_file.load()
    if kept is not None and kept.keys() == {"triple", "processor", "features", "compiler"}:
        return kept
    llvm = llvm_here()
    version = ".".join(map(str, llvm.llvm_version_info))
    facts = {
        "triple": llvm.get_process_triple(),
        "processor": llvm.get_host_cpu_name(),
        "features": llvm.get_host_cpu_features().flatten(),
        "compiler": f"llvmlite {importlib.import_module('llvmlite').__version__}, LLVM {version}",
    }
    target_file.keep(facts)
    return facts


@cache
def host_target() -> Target:
    """Return the target of the processor this process runs on, with every feature it has."""
    facts = _facts()
    return Target(facts["triple"], facts["processor"], facts["features"])


@cache
def _machine_masked(masked: str) -> Machine:
    # Keyed by the setting, so that a test or a long-lived program may change it; describing the machine takes a while.
    return this_machine()


def machine_here() -> Machine:
    """Return this machine as PERWATT_MACHINE masks it, looked at once."""
    return _machine_masked(settings.text("PERWATT_MACHINE"))


def target_of(machine: Machine | None = None) -> Target:
    """Return the target for a machine, None: this one as PERWATT_MACHINE masks it.

    The processor stays the one that is here, for its costs and schedules; vector units above the machine's are off.
    """
    host = host_target()
    isa = (machine or machine_here()).isa
    if isa in ("avx512", "neon") or not host.triple.startswith("x86_64"):
        return host
    known = {entry[1:]: entry[0] for entry in host.features.split(",")}
    kept = [sign + name for name, sign in known.items() if not name.startswith(("avx512", "avx10", "amx"))]
    missing = AVX512 if isa == "avx2" else AVX512 + AVX2
    return Target(host.triple, host.processor, ",".join([*kept, *(f"-{name}" for name in missing if name in known)]))


def _optimised(source: str, target: Target, options: Options) -> tuple[Any, Any]:
    """Return (TargetMachine, verified and optimised module); raises RuntimeError with LLVM's words on bad IR."""
    llvm = llvm_here()
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


def neon_target() -> Target:
    """Return a target for 64-bit ARM with NEON, to generate and read its code on any machine.

    Raises RuntimeError when this build of LLVM has no such target.
    """
    llvm = llvm_here()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return Target("aarch64-unknown-linux-gnu", "neoverse-n1", "+neon")


def assembly(source: str, machine: Machine | Target | None = None, options: Options = DEFAULT_OPTIONS) -> str:
    """Return the assembly text that compile_module would make of the same IR, for people and tests to read."""
    target = machine if isinstance(machine, Target) else target_of(machine)
    target_machine, module = _optimised(source, target, options)
    return str(target_machine.emit_assembly(module))


def compiler_version() -> str:
    """Return the version of llvmlite and of the LLVM inside it."""
    return _facts()["compiler"]
