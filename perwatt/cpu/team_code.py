"""The native side of a thread team, as text LLVM IR: walk a step table in step, wait, fall asleep, wake up.

Every word that threads share stands on a line of its own.
A wait has three phases: spin with the processor's pause hint, yield the processor, sleep in the kernel. The one who
changes a word adds to it first and looks for sleepers after, a sleeper counts itself first and looks at the word
after, both in one total order (seq_cst), so no wake-up can be lost (Dekker's argument).
"""

import sys
import time

from perwatt.cpu.claims import LINE_BYTES, SETS

# Byte offsets of the control block; the numbers in CODE are these.
GENERATION = 0 * LINE_BYTES  # i32: one more for every run
GENERATION_SLEEPERS = 1 * LINE_BYTES  # i32
ARRIVED = 2 * LINE_BYTES  # i32: threads that reached the barrier
OPENED = 3 * LINE_BYTES  # i32: one more each time a barrier opens
OPENED_SLEEPERS = 4 * LINE_BYTES  # i32
JOB = 5 * LINE_BYTES  # ptr table, i64 steps, ptr times or null
SETTINGS = 6 * LINE_BYTES  # i32 threads, i32 stop, i64 ns: idle spin, idle yield, barrier spin, barrier yield
MUTEX = 7 * LINE_BYTES  # pthread_mutex_t, only where there is no futex
CONDITION = 8 * LINE_BYTES  # pthread_cond_t
CLAIMS = 9 * LINE_BYTES  # SETS times a line for each thread, see claims.py


def control_bytes(threads: int) -> int:
    """Return the size of a team's control block."""
    return CLAIMS + SETS * threads * LINE_BYTES


CODE = r"""
declare i32 @clock_gettime(i32, ptr)
declare i32 @sched_yield()
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)

define internal i64 @now() nounwind {
  %time = alloca [2 x i64], align 8
  %result = call i32 @clock_gettime(i32 CLOCK_NUMBER, ptr %time)
  %seconds = load i64, ptr %time, align 8
  %at = getelementptr i8, ptr %time, i64 8
  %rest = load i64, ptr %at, align 8
  %whole = mul i64 %seconds, 1000000000
  %ns = add i64 %whole, %rest
  ret i64 %ns
}

; Returns when the word no longer holds `seen`; the time limits are those of the two phases before sleep.
define internal void @wait(ptr %control, ptr %word, i32 %seen, ptr %sleepers, i64 %spin, i64 %yield) nounwind {
enter:
  br label %look
look:
  %start = phi i64 [0, %enter], [%first, %timed]
  br label %spinning
spinning:
  %i = phi i32 [0, %look], [%next, %again]
  %value = load atomic i32, ptr %word acquire, align 4
  %same = icmp eq i32 %value, %seen
  br i1 %same, label %again, label %leave
again:
  call void @pause()
  %next = add i32 %i, 1
  %more = icmp ult i32 %next, 32
  br i1 %more, label %spinning, label %timed
timed:
  %time = call i64 @now()
  %untimed = icmp eq i64 %start, 0
  %first = select i1 %untimed, i64 %time, i64 %start
  %spent = sub i64 %time, %first
  %keep = icmp slt i64 %spent, %spin
  br i1 %keep, label %look, label %yielding
yielding:
  %limit = add i64 %spin, %yield
  %yielded = sub i64 %time, %first
  %may = icmp slt i64 %yielded, %limit
  br i1 %may, label %give, label %doze
give:
  %result = call i32 @sched_yield()
  %value2 = load atomic i32, ptr %word acquire, align 4
  %same2 = icmp eq i32 %value2, %seen
  br i1 %same2, label %given, label %leave
given:
  %time2 = call i64 @now()
  %spent2 = sub i64 %time2, %first
  %keep2 = icmp slt i64 %spent2, %limit
  br i1 %keep2, label %give, label %doze
doze:
  %old = atomicrmw add ptr %sleepers, i32 1 seq_cst
  br label %check
check:
  %value3 = load atomic i32, ptr %word seq_cst, align 4
  %same3 = icmp eq i32 %value3, %seen
  br i1 %same3, label %sleeping, label %awake
sleeping:
  call void @sleep_while(ptr %control, ptr %word, i32 %seen)
  br label %check
awake:
  %old2 = atomicrmw sub ptr %sleepers, i32 1 seq_cst
  br label %leave
leave:
  ret void
}

; Adds one to a word and wakes whoever sleeps on it.
define internal void @release(ptr %control, ptr %word, ptr %sleepers) nounwind {
enter:
  %old = atomicrmw add ptr %word, i32 1 seq_cst
  %asleep = load atomic i32, ptr %sleepers seq_cst, align 4
  %none = icmp eq i32 %asleep, 0
  br i1 %none, label %leave, label %rouse
rouse:
  call void @wake_all(ptr %control, ptr %word)
  br label %leave
leave:
  ret void
}

; Counts this thread in; the last one opens the barrier. The others wait only if `stay`.
define internal void @barrier(ptr %control, i32 %threads, i1 %stay) nounwind {
enter:
  %alone = icmp eq i32 %threads, 1
  br i1 %alone, label %leave, label %arrive
arrive:
  %count = getelementptr i8, ptr %control, i64 256
  %opened = getelementptr i8, ptr %control, i64 384
  %sleepers = getelementptr i8, ptr %control, i64 512
  %before = load atomic i32, ptr %opened acquire, align 4
  %arrived = atomicrmw add ptr %count, i32 1 acq_rel
  %others = sub i32 %threads, 1
  %last = icmp eq i32 %arrived, %others
  br i1 %last, label %open, label %remain
open:
  store atomic i32 0, ptr %count monotonic, align 4
  call void @release(ptr %control, ptr %opened, ptr %sleepers)
  br label %leave
remain:
  br i1 %stay, label %hold, label %leave
hold:
  %spin_at = getelementptr i8, ptr %control, i64 792
  %yield_at = getelementptr i8, ptr %control, i64 800
  %spin = load i64, ptr %spin_at, align 8
  %yield = load i64, ptr %yield_at, align 8
  call void @wait(ptr %control, ptr %opened, i32 %before, ptr %sleepers, i64 %spin, i64 %yield)
  br label %leave
leave:
  ret void
}

; One thread's way through the step table. A step's time is read by the thread that got `times`.
define internal void @walk(ptr %control, ptr %table, i64 %steps, i64 %thread, i32 %threads, ptr %times) nounwind {
enter:
  %timed = icmp ne ptr %times, null
  %team = zext i32 %threads to i64
  %alone = icmp eq i32 %threads, 1
  %all_claims = getelementptr i8, ptr %control, i64 CLAIMS_AT
  %set_bytes = mul i64 %team, LINE_BYTES
  %own = mul i64 %thread, LINE_BYTES
  %some = icmp sgt i64 %steps, 0
  br i1 %some, label %step, label %leave
step:
  %i = phi i64 [0, %enter], [%next, %advance]
  %set = phi i64 [0, %enter], [%set_after, %advance]
  %set_up = add i64 %set, 1
  %set_over = icmp eq i64 %set_up, CLAIM_SETS
  %set_after = select i1 %set_over, i64 0, i64 %set_up
  %claims_at = mul i64 %set, %set_bytes
  %claims_here = getelementptr i8, ptr %all_claims, i64 %claims_at
  %claims = select i1 %alone, ptr null, ptr %claims_here
  %after_at = mul i64 %set_after, %set_bytes
  %after_own = add i64 %after_at, %own
  %clear = getelementptr i8, ptr %all_claims, i64 %after_own
  store atomic i64 0, ptr %clear monotonic, align 8
  %offset = shl i64 %i, 5
  %row = getelementptr i8, ptr %table, i64 %offset
  %arguments_at = getelementptr i8, ptr %row, i64 8
  %flags_at = getelementptr i8, ptr %row, i64 16
  %kernel = load ptr, ptr %row, align 8
  %arguments = load ptr, ptr %arguments_at, align 8
  %flags = load i64, ptr %flags_at, align 8
  call void %kernel(ptr %arguments, i64 %thread, i64 %team, ptr %claims)
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %steps
  %bit = trunc i64 %flags to i1
  %meet = and i1 %bit, %more
  br i1 %meet, label %together, label %stamp
together:
  call void @barrier(ptr %control, i32 %threads, i1 true)
  br label %stamp
stamp:
  %measure = and i1 %timed, %more
  br i1 %measure, label %read, label %advance
read:
  %time = call i64 @now()
  %slot = getelementptr i64, ptr %times, i64 %next
  store i64 %time, ptr %slot, align 8
  br label %advance
advance:
  br i1 %more, label %step, label %leave
leave:
  ret void
}

; A worker's whole life: wait for the next generation, walk, count itself in at the join, wait again.
define void @serve(ptr %control, i64 %thread) nounwind {
enter:
  %float_mode = call i64 @flush_denormals()
  %sleepers = getelementptr i8, ptr %control, i64 128
  %job = getelementptr i8, ptr %control, i64 640
  %steps_at = getelementptr i8, ptr %control, i64 648
  %settings = getelementptr i8, ptr %control, i64 768
  %stop_at = getelementptr i8, ptr %control, i64 772
  %spin_at = getelementptr i8, ptr %control, i64 776
  %yield_at = getelementptr i8, ptr %control, i64 784
  %threads = load i32, ptr %settings, align 4
  br label %idle
idle:
  %seen = phi i32 [0, %enter], [%generation, %go]
  %spin = load i64, ptr %spin_at, align 8
  %yield = load i64, ptr %yield_at, align 8
  call void @wait(ptr %control, ptr %control, i32 %seen, ptr %sleepers, i64 %spin, i64 %yield)
  %generation = load atomic i32, ptr %control acquire, align 4
  %stop = load atomic i32, ptr %stop_at acquire, align 4
  %going = icmp eq i32 %stop, 0
  br i1 %going, label %go, label %leave
go:
  %table = load ptr, ptr %job, align 8
  %steps = load i64, ptr %steps_at, align 8
  call void @walk(ptr %control, ptr %table, i64 %steps, i64 %thread, i32 %threads, ptr null)
  call void @barrier(ptr %control, i32 %threads, i1 false)
  br label %idle
leave:
  call void @restore_float_mode(i64 %float_mode)
  ret void
}

; Hands the table to the workers, walks it as thread 0, and returns when all have finished.
define void @run(ptr %control, ptr %table, i64 %steps, ptr %times) nounwind {
enter:
  %float_mode = call i64 @flush_denormals()
  %settings = getelementptr i8, ptr %control, i64 768
  %threads = load i32, ptr %settings, align 4
  %timed = icmp ne ptr %times, null
  br i1 %timed, label %begin, label %any
begin:
  %start = call i64 @now()  ; before the workers can start
  store i64 %start, ptr %times, align 8
  br label %any
any:
  %alone = icmp eq i32 %threads, 1
  br i1 %alone, label %work, label %post
post:  ; the first set of claims was left as it came, and a worker may be late to its own line
  %all_claims = getelementptr i8, ptr %control, i64 CLAIMS_AT
  %team = zext i32 %threads to i64
  %set_bytes = mul i64 %team, LINE_BYTES
  call void @llvm.memset.p0.i64(ptr align 8 %all_claims, i8 0, i64 %set_bytes, i1 false)
  %job = getelementptr i8, ptr %control, i64 640
  %steps_at = getelementptr i8, ptr %control, i64 648
  %sleepers = getelementptr i8, ptr %control, i64 128
  store ptr %table, ptr %job, align 8
  store i64 %steps, ptr %steps_at, align 8
  call void @release(ptr %control, ptr %control, ptr %sleepers)
  br label %work
work:
  call void @walk(ptr %control, ptr %table, i64 %steps, i64 0, i32 %threads, ptr %times)
  call void @barrier(ptr %control, i32 %threads, i1 true)
  br i1 %timed, label %read, label %leave
read:
  %time = call i64 @now()
  %slot = getelementptr i64, ptr %times, i64 %steps
  store i64 %time, ptr %slot, align 8
  br label %leave
leave:
  call void @restore_float_mode(i64 %float_mode)
  ret void
}

define void @stop(ptr %control) nounwind {
  %stop_at = getelementptr i8, ptr %control, i64 772
  %sleepers = getelementptr i8, ptr %control, i64 128
  store atomic i32 1, ptr %stop_at release, align 4
  call void @release(ptr %control, ptr %control, ptr %sleepers)
  ret void
}
"""

# FUTEX_WAIT_PRIVATE is 128, FUTEX_WAKE_PRIVATE 129 (linux/futex.h); it wakes more than a team ever has.
FUTEX = r"""
declare i64 @syscall(i64, ...)

define internal void @sleep_while(ptr %control, ptr %word, i32 %seen) nounwind {
  %result = call i64 (i64, ...) @syscall(i64 FUTEX_NUMBER, ptr %word, i32 128, i32 %seen, ptr null, ptr null, i32 0)
  ret void
}

define internal void @wake_all(ptr %control, ptr %word) nounwind {
  %result = call i64 (i64, ...) @syscall(i64 FUTEX_NUMBER, ptr %word, i32 129, i32 1048576, ptr null, ptr null, i32 0)
  ret void
}

define void @prepare(ptr %control) nounwind {
  ret void
}
"""

CONDITION_VARIABLE = r"""
declare i32 @pthread_mutex_init(ptr, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_init(ptr, ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_broadcast(ptr)

define internal void @sleep_while(ptr %control, ptr %word, i32 %seen) nounwind {
enter:
  %mutex = getelementptr i8, ptr %control, i64 896
  %condition = getelementptr i8, ptr %control, i64 1024
  %locked = call i32 @pthread_mutex_lock(ptr %mutex)
  %value = load atomic i32, ptr %word seq_cst, align 4
  %same = icmp eq i32 %value, %seen
  br i1 %same, label %doze, label %leave
doze:
  %result = call i32 @pthread_cond_wait(ptr %condition, ptr %mutex)
  br label %leave
leave:
  %unlocked = call i32 @pthread_mutex_unlock(ptr %mutex)
  ret void
}

define internal void @wake_all(ptr %control, ptr %word) nounwind {
  %mutex = getelementptr i8, ptr %control, i64 896
  %condition = getelementptr i8, ptr %control, i64 1024
  %locked = call i32 @pthread_mutex_lock(ptr %mutex)
  %result = call i32 @pthread_cond_broadcast(ptr %condition)
  %unlocked = call i32 @pthread_mutex_unlock(ptr %mutex)
  ret void
}

define void @prepare(ptr %control) nounwind {
  %mutex = getelementptr i8, ptr %control, i64 896
  %condition = getelementptr i8, ptr %control, i64 1024
  %first = call i32 @pthread_mutex_init(ptr %mutex, ptr null)
  %second = call i32 @pthread_cond_init(ptr %condition, ptr null)
  ret void
}
"""

# MXCSR 0x9fc0: all exceptions masked, round to nearest, flush to zero (bit 15), denormals are zero (bit 6).
X86 = r"""
declare void @llvm.x86.sse2.pause()
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)

define internal void @pause() alwaysinline nounwind {
  call void @llvm.x86.sse2.pause()
  ret void
}

define internal i64 @flush_denormals() nounwind {
  %was = alloca i32, align 4
  %is = alloca i32, align 4
  call void @llvm.x86.sse.stmxcsr(ptr %was)
  store i32 40896, ptr %is, align 4
  call void @llvm.x86.sse.ldmxcsr(ptr %is)
  %old = load i32, ptr %was, align 4
  %wide = zext i32 %old to i64
  ret i64 %wide
}

define internal void @restore_float_mode(i64 %mode) nounwind {
  %is = alloca i32, align 4
  %old = trunc i64 %mode to i32
  store i32 %old, ptr %is, align 4
  call void @llvm.x86.sse.ldmxcsr(ptr %is)
  ret void
}
"""

# FPCR bit 24: flush to zero; the hint is YIELD.
AARCH64 = r"""
declare void @llvm.aarch64.hint(i32 immarg)
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)

define internal void @pause() alwaysinline nounwind {
  call void @llvm.aarch64.hint(i32 1)
  ret void
}

define internal i64 @flush_denormals() nounwind {
  %was = call i64 @llvm.aarch64.get.fpcr()
  %is = or i64 %was, 16777216
  call void @llvm.aarch64.set.fpcr(i64 %is)
  ret i64 %was
}

define internal void @restore_float_mode(i64 %mode) nounwind {
  call void @llvm.aarch64.set.fpcr(i64 %mode)
  ret void
}
"""

ANY_PROCESSOR = r"""
define internal void @pause() alwaysinline nounwind {
  ret void
}

define internal i64 @flush_denormals() nounwind {
  ret i64 0
}

define internal void @restore_float_mode(i64 %mode) nounwind {
  ret void
}
"""


def source(architecture: str, sleeping: str) -> str:
    """Return the team's IR for an LLVM architecture name; sleeping is "futex" (Linux) or "condition" (POSIX)."""
    processor = {"x86_64": X86, "aarch64": AARCH64, "arm64": AARCH64}.get(architecture, ANY_PROCESSOR)
    futex_number = 202 if architecture == "x86_64" else 98  # asm/unistd.h; 98 is the number of all newer architectures
    kernel = FUTEX if sleeping == "futex" else CONDITION_VARIABLE
    text = processor + kernel + CODE
    numbers = {
        "FUTEX_NUMBER": futex_number, "CLOCK_NUMBER": time.CLOCK_MONOTONIC,
        "CLAIMS_AT": CLAIMS, "CLAIM_SETS": SETS, "LINE_BYTES": LINE_BYTES,
    }  # fmt: skip
    for name, number in numbers.items():
        text = text.replace(name, str(number))
    return text


def default_sleeping(architecture: str) -> str:
    """Return how threads sleep here: by futex where its system call number is known."""
    known = architecture in ("x86_64", "aarch64", "riscv64", "loongarch64")
    return "futex" if sys.platform == "linux" and known else "condition"
