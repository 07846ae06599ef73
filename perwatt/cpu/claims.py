"""How the threads of a team share a step's tasks: each takes its own run of them piece by piece, then helps the others.

A core may be slower than its neighbour for seconds: another machine's guest on its sibling thread, a server's own work
on it. Equal shares would make every step as slow as the slowest core. So each thread claims pieces of its own run from
a counter, which nobody else touches until that thread falls behind; who has finished claims pieces of others' runs.

The counters of a step are lines of LINE_BYTES, one for each thread, that begin at zero: how many tasks of that thread's
run have been claimed. Three sets of them take turns. While a step uses one set, each thread clears its own line of the
next one: who still used that, two steps before, has passed the barrier between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

LINE_BYTES = 128  # processors fetch lines in pairs
SETS = 3
# A thread claims its run in so many pieces, where it has as many tasks.
PIECES = 16
# Looking at another's counter fetches its line: on large machines a thread helps only its next neighbours.
MOST_OTHERS = 4
# Of every kernel: its words, which thread of how many calls, and the counters, or null.
PARAMETERS = "ptr noalias nocapture readonly %args, i64 %thread, i64 %threads, ptr nocapture %claims"


class Writer(Protocol):
    """What this needs of a kernel under construction."""

    def emit(self, operation: str) -> str:
        """Append an instruction that makes a value and return the value's name."""

    def do(self, operation: str) -> None:
        """Append an instruction that makes no value."""

    def start_block(self, name: str) -> str:
        """Begin a basic block and return the name of the one before."""

    def later(self, line: str) -> Callable[[str], None]:
        """Append an instruction whose text becomes known later, by a call of what is returned."""


def open_claims(k: Writer, count: str) -> tuple[str, str, Callable[[], None]]:
    """Write the loop over what this thread claims of `count` tasks, up to its body.

    Returns the names of the first task and of the one behind the last, and what writes the end of the loop behind its
    body. Where the kernel is given no counters the body runs once, on the thread's own run.
    """
    k.do("%claims.none = icmp eq ptr %claims, null")
    own = _run_of(k, count, "%thread")
    k.do(f"%claims.each = udiv i64 {count}, %threads")
    size = k.emit(f"udiv i64 %claims.each, {PIECES}")
    piece = k.emit(f"call i64 @llvm.smax.i64(i64 {size}, i64 1)")
    others = k.emit(f"call i64 @llvm.smin.i64(i64 %threads, i64 {MOST_OTHERS + 1})")
    k.do("br i1 %claims.none, label %claims.body, label %claims.look")
    before = k.start_block("claims.look")
    owner_line = k.later("%claims.owner = phi i64")
    left_line = k.later("%claims.left = phi i64")
    first, last = _run_of(k, count, "%claims.owner")
    line = k.emit(f"mul i64 %claims.owner, {LINE_BYTES}")
    counter = k.emit(f"getelementptr i8, ptr %claims, i64 {line}")
    # Look before claiming: who helps must not slow down who works.
    seen = k.emit(f"load atomic i64, ptr {counter} monotonic, align 8")
    length = k.emit(f"sub i64 {last}, {first}")
    some = k.emit(f"icmp slt i64 {seen}, {length}")
    k.do(f"br i1 {some}, label %claims.take, label %claims.next")
    k.start_block("claims.take")
    taken = k.emit(f"atomicrmw add ptr {counter}, i64 {piece} monotonic")
    got = k.emit(f"icmp slt i64 {taken}, {length}")
    begin = k.emit(f"add i64 {first}, {taken}")
    behind = k.emit(f"add i64 {begin}, {piece}")
    end = k.emit(f"call i64 @llvm.smin.i64(i64 {behind}, i64 {last})")
    k.do(f"br i1 {got}, label %claims.body, label %claims.next")
    k.start_block("claims.next")
    k.do("%claims.fewer = sub i64 %claims.left, 1")
    following = k.emit("add i64 %claims.owner, 1")
    over = k.emit(f"icmp eq i64 {following}, %threads")
    k.do(f"%claims.other = select i1 {over}, i64 0, i64 {following}")
    more = k.emit("icmp sgt i64 %claims.fewer, 0")
    k.do(f"br i1 {more}, label %claims.look, label %claims.done")
    k.start_block("claims.body")
    begins = k.emit(f"phi i64 [ {own[0]}, %{before} ], [ {begin}, %claims.take ]")
    ends = k.emit(f"phi i64 [ {own[1]}, %{before} ], [ {end}, %claims.take ]")
    owner = k.emit(f"phi i64 [ %thread, %{before} ], [ %claims.owner, %claims.take ]")
    left = k.emit(f"phi i64 [ 0, %{before} ], [ %claims.left, %claims.take ]")

    def close() -> None:
        k.do("br i1 %claims.none, label %claims.done, label %claims.look")
        body = k.start_block("claims.done")
        owner_line(f" [ %thread, %{before} ], [ {owner}, %{body} ], [ %claims.other, %claims.next ]")
        left_line(f" [ {others}, %{before} ], [ {left}, %{body} ], [ %claims.fewer, %claims.next ]")

    return begins, ends, close


def _run_of(k: Writer, count: str, thread: str) -> tuple[str, str]:
    """Return a thread's own run of the tasks: first, and the one behind the last."""
    below = k.emit(f"mul i64 {count}, {thread}")
    above = k.emit(f"add i64 {below}, {count}")
    return k.emit(f"udiv i64 {below}, %threads"), k.emit(f"udiv i64 {above}, %threads")
