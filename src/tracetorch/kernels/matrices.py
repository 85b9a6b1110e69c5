"""Kernels for the matrices of `Eligibility`; like `loops.py`, each takes the address of one table.

The matrices are far larger than any cache, so that each is read and written once, a few rows of it at a time, which are
held in registers while all terms of a window are added to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import carray, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import kernel as _kernel
from .jit import least_kept
from .jit import loop as _loop
from .jit import pointer as _pointer
from .jit import summing as _sum
from .loops import load as _load
from .loops import store as _store

_features = binding.get_host_cpu_features()
VECTOR = 64 if _features.get("avx512f") else 32 if _features.get("avx2") else 16  # bytes in a register
ROWS = 8 if _features.get("avx512f") or not _features.get("sse2") else 4  # three times as many registers, and some


@_loop
def _aligned(count: int, kind: Any) -> Any:
    """Zeros that begin at a multiple of 64 bytes."""
    spare = np.zeros(count + 16, kind)
    return spare[(-spare.ctypes.data % 64) // spare.itemsize :]


@_loop
def _address(array: Any) -> Any:
    return np.int64(array.ctypes.data)


def _tile(vectors: int) -> Any:
    """`new = decay * old + factors^T columns` for `ROWS` rows of so many vectors, held in registers meanwhile.

    Takes the decay and a tuple of integers: the addresses of both, of which `new` may be `old`; how many bytes it is
    from a row to the next; the address of what will be `old` soon; those of the factors (terms, ROWS) and the columns
    (terms, the width of the rows), both without gaps; the number of terms; the address of rows to which `new` times the
    signals (ROWS) is added, 0 for none, and that of the signals.
    """

    def typed(typing: Any, decay: Any, integers: Any) -> Any:  # noqa: ARG001
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            decay, integers = arguments
            old, new, step, ahead, factors, columns, terms, out, signals = cgutils.unpack_tuple(builder, integers, 9)
            bits = signature.args[0].bitwidth
            size, byte, number = bits // 8, ir.IntType(8), decay.type
            vector = ir.VectorType(number, VECTOR // size)

            def intrinsic_of(name: str, result: Any, taken: list[Any]) -> Any:
                return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, taken), name)

            add_product = intrinsic_of(f"llvm.fmuladd.v{VECTOR // size}f{bits}", vector, [vector] * 3)
            size_of = intrinsic_of(f"llvm.fabs.v{VECTOR // size}f{bits}", vector, [vector])
            smallest = float(least_kept(np.float32 if bits == 32 else np.float64))
            least = ir.Constant(vector, [smallest] * vector.count)
            hint = [byte.as_pointer(), *[cgutils.int32_t] * 3]
            fetch = intrinsic_of("llvm.prefetch.p0", ir.VoidType(), hint)
            for_reading = [ir.Constant(cgutils.int32_t, code) for code in (0, 3, 1)]  # into the nearest cache

            def moved(address: Any, distance: int) -> Any:
                return builder.add(address, ir.Constant(address.type, distance))

            def pointer(address: Any, kind: Any) -> Any:
                return builder.inttoptr(address, kind.as_pointer())

            def load(address: Any, kind: Any) -> Any:
                return builder.load(pointer(address, kind), align=size)

            def spread(scalar: Any) -> Any:
                nothing = ir.Constant(vector, ir.Undefined)
                first = builder.insert_element(nothing, scalar, ir.Constant(cgutils.int32_t, 0))
                return builder.shuffle_vector(
                    first, nothing, ir.Constant(ir.VectorType(cgutils.int32_t, vector.count), 0)
                )

            places, sums, decays = [], [], spread(decay)
            for row in range(ROWS):
                start = builder.mul(step, ir.Constant(step.type, row))
                places += [moved(start, VECTOR * v) for v in range(vectors)]
            for place in places:
                sums.append(cgutils.alloca_once(builder, vector))
                decayed = builder.fmul(decays, load(builder.add(old, place), vector))
                stays = builder.fcmp_unordered(">", builder.call(size_of, [decayed]), least)
                builder.store(builder.select(stays, decayed, ir.Constant(vector, None)), sums[-1])
            for place in places:
                builder.call(fetch, [pointer(builder.add(ahead, place), byte), *for_reading])
            with cgutils.for_range(builder, terms) as loop:
                column = builder.add(columns, builder.mul(loop.index, ir.Constant(terms.type, VECTOR * vectors)))
                factor = builder.add(factors, builder.mul(loop.index, ir.Constant(terms.type, size * ROWS)))
                taken = [load(moved(column, VECTOR * v), vector) for v in range(vectors)]
                for row in range(ROWS):
                    by = spread(load(moved(factor, size * row), number))
                    for x, total in zip(taken, sums[row * vectors :], strict=False):
                        builder.store(builder.call(add_product, [by, x, builder.load(total)]), total)
            for place, total in zip(places, sums, strict=True):
                builder.store(builder.load(total), pointer(builder.add(new, place), vector), align=size)
            with builder.if_then(builder.icmp_signed("!=", out, ir.Constant(out.type, 0))):
                for row in range(ROWS):
                    by = spread(load(moved(signals, size * row), number))
                    for v in range(vectors):
                        at = builder.add(out, places[row * vectors + v])
                        added = builder.call(add_product, [by, builder.load(sums[row * vectors + v]), load(at, vector)])
                        builder.store(added, pointer(at, vector), align=size)
            return context.get_dummy_value()

        return types.void(decay, types.UniTuple(types.int64, 9)), generate

    return intrinsic(typed)


_tile_1, _tile_2, _tile_3 = _tile(1), _tile(2), _tile(3)


@_loop
def _pack_columns(columns: Any, window: Any, at: int, term: int, terms: int, n: int, panel: int) -> None:
    """One term's n entries among the columns, which stand panel by panel, and in a panel term by term."""
    wide = VECTOR // columns.itemsize
    for start in range(0, n, panel):
        room = min(panel, -(-(n - start) // wide) * wide)
        _load(columns[start * terms + term * room :], window, at + start, min(panel, n - start))


@_loop
def _pack_rows(rows: Any, window: Any, at: int, term: int, distance: int, m: int) -> None:
    """One term's m factors among the rows, which stand in blocks of `ROWS`."""
    part = window[at : at + m]
    whole = m // ROWS
    for block in range(whole):
        to, start = block * distance + term * ROWS, block * ROWS
        for k in range(ROWS):
            rows[to + k] = part[start + k]
    for k in range(m - whole * ROWS):
        rows[whole * distance + term * ROWS + k] = part[whole * ROWS + k]


@_sum
def _add_row(out: Any, x: Any, factor: Any, n: int) -> None:
    for j in range(n):
        out[j] += factor * x[j]


def advance_matrix(real: Any) -> Any:
    """A product of few terms for each lane, added to matrices that fade: read once, written once, maybe in place.

    Where there is a signal, their product with it, summed over lanes and nodes, on the way.
    """

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 17, np.int64)
        steps, lanes, nodes, m, n, stages, begin, end = a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]
        before, g = (
            carray(_pointer(a[8]), lanes * nodes * m * n, real),
            carray(_pointer(a[9]), steps * nodes * lanes * m, real),
        )
        border, taken = (
            carray(_pointer(a[10]), nodes * lanes * stages * m, real),
            carray(_pointer(a[11]), steps * lanes * n, real),
        )
        past, decay = carray(_pointer(a[12]), lanes * stages * n, real), carray(_pointer(a[13]), nodes, real)
        new = carray(_pointer(a[14]), lanes * nodes * m * n, real)
        signal, out = carray(_pointer(a[15]), lanes * nodes * m, real), carray(_pointer(a[16]), m * n, real)
        carries = a[16] != 0
        size = before.itemsize
        wide = VECTOR // size
        mine = end - begin
        panel, terms, blocks = 3 * wide, steps + stages, -(-mine // ROWS)
        distance = nodes * terms * ROWS
        rows, columns = _aligned(blocks * distance, real), _aligned(terms * -(-n // wide) * wide, real)
        edge, signals = _aligned(ROWS * panel, real), np.zeros(blocks * nodes * ROWS, real)
        rows_at, columns_at = _address(rows), _address(columns)
        edge_at, signals_at = _address(edge), _address(signals)
        if carries:
            for i in range(begin * n, end * n):
                out[i] = real(0)
        for lane in range(lanes):
            for t in range(steps):
                _pack_columns(columns, taken, (t * lanes + lane) * n, t, terms, n, panel)
            for s in range(stages):
                _pack_columns(columns, past, (lane * stages + s) * n, steps + s, terms, n, panel)
            for h in range(nodes):
                for t in range(steps):
                    at = ((t * nodes + h) * lanes + lane) * m + begin
                    _pack_rows(rows, g, at, h * terms + t, distance, mine)
                for s in range(stages):
                    at = ((h * lanes + lane) * stages + s) * m + begin
                    _pack_rows(rows, border, at, h * terms + steps + s, distance, mine)
                if carries:
                    _pack_rows(signals, signal, (lane * nodes + h) * m + begin, h, nodes * ROWS, mine)
            for block in range(blocks):
                first = begin + block * ROWS
                there = min(ROWS, end - first)
                for start in range(0, n, panel):
                    width = min(panel, n - start)
                    vectors = -(-width // wide)
                    room = vectors * wide
                    whole = there == ROWS and width == room
                    for h in range(nodes):
                        at = ((lane * nodes + h) * m + first) * n + start
                        ahead = a[8] + size * (at + panel if start + panel < n else at - start + ROWS * n)
                        total_at = 0
                        if whole:
                            total_at = a[16] + size * (first * n + start) if carries else 0
                            old_at, new_at, step = a[8] + size * at, a[14] + size * at, size * n
                        else:
                            for k in range(there):
                                _load(edge[k * room :], before, at + k * n, width)
                            old_at, new_at, step = edge_at, edge_at, size * room
                        factors = rows_at + size * (block * distance + h * terms * ROWS)
                        column = columns_at + size * start * terms
                        by = signals_at + size * (block * nodes + h) * ROWS
                        places = (old_at, new_at, step, ahead, factors, column, terms, total_at, by)
                        if vectors == 3:
                            _tile_3(decay[h], places)
                        elif vectors == 2:
                            _tile_2(decay[h], places)
                        else:
                            _tile_1(decay[h], places)
                        if not whole:
                            for k in range(there):
                                _store(new, at + k * n, edge[k * room :], width)
                                if carries:
                                    factor = signals[(block * nodes + h) * ROWS + k]
                                    _add_row(out[(first + k) * n + start :], edge[k * room :], factor, width)

    return run


@_sum
def _add_rows(out: Any, x: Any, factors: Any, at: Any, n: int) -> None:
    """Four rows that lie somewhere, each times its factor, added to one."""
    x0, x1, x2, x3 = x[at[0] : at[0] + n], x[at[1] : at[1] + n], x[at[2] : at[2] + n], x[at[3] : at[3] + n]
    f0, f1, f2, f3 = factors[0], factors[1], factors[2], factors[3]
    for j in range(n):
        out[j] += f0 * x0[j] + f1 * x1[j] + f2 * x2[j] + f3 * x3[j]


def carry_matrix(real: Any) -> Any:
    """Matrices, each row times its signal, summed over lanes and nodes: read once."""

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 8, np.int64)
        copies, m, n, begin, end = a[0], a[1], a[2], a[3], a[4]
        signal, matrix = carray(_pointer(a[5]), copies * m, real), carray(_pointer(a[6]), copies * m * n, real)
        out = carray(_pointer(a[7]), m * n, real)
        factors, at = np.zeros(4, real), np.zeros(4, np.int64)
        for i in range(begin * n, end * n):
            out[i] = real(0)
        for first in range(begin, end, 8):  # rows that stay in the nearest cache
            for copy in range(0, copies, 4):
                for i in range(first, min(first + 8, end)):
                    for k in range(4):
                        there = copy + k < copies
                        row = (copy + k if there else copy) * m + i
                        factors[k] = signal[row] if there else real(0)
                        at[k] = row * n
                    _add_rows(out[i * n : i * n + n], matrix, factors, at, n)

    return run


KERNELS: dict[str, Callable[[Any], Any]] = {kernel.__name__: kernel for kernel in (advance_matrix, carry_matrix)}
