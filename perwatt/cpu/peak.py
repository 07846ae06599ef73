"""What this machine can do at most, measured: fused multiply-adds and bytes read from memory a second.

Shares of these peaks say how near a step is to what bounds it. Each figure is the best of many short runs, since
whatever disturbs a run only makes it slower.
"""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perwatt.cpu.compiler import machine_here
from perwatt.cpu.jit import compile_module
from perwatt.cpu.team import shared_team
from perwatt.machine import Machine

# Independent sums: at least any core's FMA latency x units (4 x 2 to 5 x 2, 4 x 4 on NEON cores), and with the two
# factors no more than the registers, of which AVX2 has 16.
CHAINS = {16: 16, 8: 12, 4: 16}
ROUNDS = 20_000  # about half a millisecond
READ_VECTORS = 16  # loads of one turn of the reading loop
SECONDS_EACH = 0.12


@dataclass(frozen=True)
class Peak:
    """The measured bounds of a number of threads; GFLOP/s count a multiply and an add, GB/s are 1e9 bytes."""

    threads: int
    gflop_per_s: float
    read_gb_per_s: float


def source(lanes: int) -> str:
    """Return the IR of both loops for a vector width in floats.

    multiply_add: arguments are rounds, address of 2 floats, address of an output of one 64-byte line a thread.
    read: arguments are the number of blocks of READ_VECTORS vectors, their address, the output's address.
    """
    vector = f"<{lanes} x float>"
    chains = range(CHAINS[lanes])
    start = "\n".join(f"  %s{i} = phi {vector} [%a, %enter], [%n{i}, %loop]" for i in chains)
    step = "\n".join(
        f"  %n{i} = call {vector} @llvm.fmuladd.v{lanes}f32({vector} %s{i}, {vector} %a, {vector} %b)" for i in chains
    )
    begin = "\n".join(f"  %s{i} = phi {vector} [zeroinitializer, %enter], [%n{i}, %loop]" for i in range(READ_VECTORS))
    load = "\n".join(
        f"  %p{i} = getelementptr {vector}, ptr %block, i64 {i}\n"
        f"  %v{i} = load {vector}, ptr %p{i}, align 4\n"
        f"  %n{i} = fadd {vector} %s{i}, %v{i}"
        for i in range(READ_VECTORS)
    )

    def finish(terms: int) -> str:
        total = "\n".join(
            f"  %t{i} = fadd {vector} {'%n0' if i == 1 else f'%t{i - 1}'}, %n{i}" for i in range(1, terms)
        )
        return f"""{total}
  %line = shl i64 %thread, 6
  %place = getelementptr i8, ptr %out, i64 %line
  store {vector} %t{terms - 1}, ptr %place, align 4
  ret void
"""

    splat = f"{vector} poison, <{lanes} x i32> zeroinitializer"
    return f"""
declare {vector} @llvm.fmuladd.v{lanes}f32({vector}, {vector}, {vector})

define void @multiply_add(ptr %arguments, i64 %thread, i64 %threads) nounwind {{
enter:
  %second = getelementptr i64, ptr %arguments, i64 1
  %third = getelementptr i64, ptr %arguments, i64 2
  %rounds = load i64, ptr %arguments, align 8
  %numbers = load ptr, ptr %second, align 8
  %out = load ptr, ptr %third, align 8
  %next = getelementptr float, ptr %numbers, i64 1
  %x = load float, ptr %numbers, align 4
  %y = load float, ptr %next, align 4
  %x0 = insertelement {vector} poison, float %x, i64 0
  %y0 = insertelement {vector} poison, float %y, i64 0
  %a = shufflevector {vector} %x0, {splat}
  %b = shufflevector {vector} %y0, {splat}
  br label %loop
loop:
  %i = phi i64 [0, %enter], [%j, %loop]
{start}
{step}
  %j = add i64 %i, 1
  %more = icmp slt i64 %j, %rounds
  br i1 %more, label %loop, label %leave
leave:
{finish(CHAINS[lanes])}}}

define void @read(ptr %arguments, i64 %thread, i64 %threads) nounwind {{
enter:
  %second = getelementptr i64, ptr %arguments, i64 1
  %third = getelementptr i64, ptr %arguments, i64 2
  %blocks = load i64, ptr %arguments, align 8
  %data = load ptr, ptr %second, align 8
  %out = load ptr, ptr %third, align 8
  %share = udiv i64 %blocks, %threads
  %first = mul i64 %share, %thread
  %last = add i64 %first, %share
  br label %loop
loop:
  %i = phi i64 [%first, %enter], [%j, %loop]
{begin}
  %block = getelementptr [{READ_VECTORS} x {vector}], ptr %data, i64 %i
{load}
  %j = add i64 %i, 1
  %more = icmp slt i64 %j, %last
  br i1 %more, label %loop, label %leave
leave:
{finish(READ_VECTORS)}}}
"""


def multiply_adds(threads: int, machine: Machine | None = None) -> float:
    """Return the peak of float32 fused multiply-adds in GFLOP/s on this many threads; takes about 0.15 s.

    Where the vector unit has no such instruction, a multiply and an add take its place.
    """
    machine = machine or machine_here()
    numbers = np.array([0.5, 1.0], np.float32)
    out = np.zeros((threads, 16), np.float32)
    arguments = np.array([ROUNDS, numbers.ctypes.data, out.ctypes.data, 0], np.int64)
    best_ns = _best_ns("multiply_add", arguments, threads, machine)
    chains = CHAINS[machine.vector_floats]
    assert np.allclose(out[:, : machine.vector_floats], 2.0 * chains)  # x -> x/2 + 1 ends at 2 in every chain
    return 2.0 * machine.vector_floats * chains * ROUNDS * threads / best_ns


def memory_read(threads: int, machine: Machine | None = None) -> float:
    """Return the peak rate of reading memory in GB/s on this many threads; takes about 0.25 s.

    The buffer is four times the last cache, from 64 to 256 MiB and at most a quarter of the memory there is.
    """
    machine = machine or machine_here()
    known = [size for size in (machine.memory_bytes, machine.memory_limit_bytes) if size is not None]
    wanted = min(max(4 * (machine.l3_bytes or machine.l2_bytes or 0), 64 << 20), 256 << 20)
    buffer: NDArray[np.float32] = np.ones(min(wanted, *(size // 4 for size in known), 1 << 30) // 4, np.float32)
    out = np.zeros((threads, 16), np.float32)
    block = READ_VECTORS * machine.vector_floats
    blocks = buffer.size // block
    arguments = np.array([blocks, buffer.ctypes.data, out.ctypes.data, 0], np.int64)
    best_ns = _best_ns("read", arguments, threads, machine)
    return blocks // threads * threads * block * 4 / best_ns


def _best_ns(function: str, arguments: NDArray[np.int64], threads: int, machine: Machine) -> float:
    code = compile_module(source(machine.vector_floats), machine, "peak")
    table = np.array([[code.address(function), arguments.ctypes.data, 0, 0]], np.int64)
    team = shared_team(threads)
    best = float("inf")
    team.run(table)
    end = time.monotonic() + SECONDS_EACH
    while time.monotonic() < end:
        best = min(best, float(team.time_steps(table, 1)[0, 0]))
    return best


def measure(threads: int, machine: Machine | None = None) -> Peak:
    """Return both bounds of this many threads; takes about 0.4 s and wants an idle machine."""
    return Peak(threads, multiply_adds(threads, machine), memory_read(threads, machine))
