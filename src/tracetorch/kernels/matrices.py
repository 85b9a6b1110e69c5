"""Kernels for the matrices of `Eligibility`; like `loops.py`, each takes the address of one table.

The matrices are far larger than any cache, so that each is read and written once, a few rows of it at a time, which are
held in registers while all terms of a window are added to them. They lie in memory input by input: a row is what all
neurons have of one input. Where inputs are spikes, only the steps in which an input was active are added to its row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.extending import intrinsic

from ..functional.spikes import WORD
from . import bits
from .instructions import (
    MANY,
    NUMBER,
    REGISTER,
    add_product,
    constant,
    instruction,
    of_vectors,
    read,
    read_one,
    size_of,
    spread,
    write,
)
from .jit import kernel as _kernel
from .jit import least_kept
from .jit import loop as _loop
from .jit import pointer as _pointer
from .jit import summing as _sum
from .loops import load as _load
from .loops import store as _store

ROWS = 8 if MANY else 4  # three times as many registers, and some

AHEAD, NEAR = 8, 2**15  # where inputs are spikes: rows that are fetched ahead; bytes that are near
EXPONENT = {4: 0x70000000, 8: 0x7E00000000000000}  # bits none of which is set in numbers as small as 2^-96 or 2^-992


@_loop
def _aligned(count: int, kind: Any) -> Any:
    """Zeros that begin at a multiple of 64 bytes."""
    spare = np.zeros(count + 16, kind)
    return spare[(-spare.ctypes.data % 64) // spare.itemsize :]


@_loop
def _address(array: Any) -> Any:
    return np.int64(array.ctypes.data)


def _fetch(builder: Any, address: Any) -> None:
    """Have the nearest cache fetch what will be read."""
    byte = ir.IntType(8).as_pointer()
    function = ir.FunctionType(ir.VoidType(), [byte, *[cgutils.int32_t] * 3])
    prefetch = cgutils.get_or_insert_function(builder.module, function, "llvm.prefetch.p0")
    builder.call(prefetch, [builder.inttoptr(address, byte), *(cgutils.int32_t(code) for code in (0, 3, 1))])


def _tile(vectors: int) -> Any:
    """`new = decay * old + factors^T columns` for `ROWS` rows of so many vectors, held in registers meanwhile.

    Takes the decay and a tuple of integers: the addresses of both, of which `new` may be `old`; how many bytes it is
    from a row to the next; the address of what will be `old` soon; those of the factors (terms, ROWS) and the columns
    (terms, the width of the rows), both without gaps; the number of terms; the address of rows to which `new` times the
    signal, one number for each column, is added, 0 for none, and that of the signal.
    """

    def typed(typing: Any, decay: Any, integers: Any) -> Any:  # noqa: ARG001
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
            decay, integers = arguments
            old, new, step, ahead, factors, columns, terms, out, signal = cgutils.unpack_tuple(builder, integers, 9)
            number = decay.type
            size, width = size_of(number), REGISTER // size_of(number)
            vector = ir.VectorType(number, width)
            magnitude = of_vectors(builder, "llvm.fabs", vector, vector, [vector])
            least = constant(vector, float(least_kept(np.float32 if size == 4 else np.float64)))

            def moved(address: Any, distance: int) -> Any:
                return builder.add(address, address.type(distance))

            places, sums, decays = [], [], spread(builder, vector, decay)
            for row in range(ROWS):
                start = builder.mul(step, step.type(row))
                places += [moved(start, REGISTER * v) for v in range(vectors)]
            for place in places:
                sums.append(cgutils.alloca_once(builder, vector))
                decayed = builder.fmul(decays, read(builder, number, width, builder.add(old, place)))
                stays = builder.fcmp_unordered(">", builder.call(magnitude, [decayed]), least)
                builder.store(builder.select(stays, decayed, constant(vector, 0.0)), sums[-1])
            for place in places:
                _fetch(builder, builder.add(ahead, place))
            with cgutils.for_range(builder, terms) as loop:
                column = builder.add(columns, builder.mul(loop.index, terms.type(REGISTER * vectors)))
                factor = builder.add(factors, builder.mul(loop.index, terms.type(size * ROWS)))
                taken = [read(builder, number, width, moved(column, REGISTER * v)) for v in range(vectors)]
                for row in range(ROWS):
                    by = spread(builder, vector, read_one(builder, number, moved(factor, size * row)))
                    for x, total in zip(taken, sums[row * vectors :], strict=False):
                        builder.store(add_product(builder, by, x, builder.load(total)), total)
            for place, total in zip(places, sums, strict=True):
                write(builder, builder.load(total), builder.add(new, place))
            with builder.if_then(builder.icmp_signed("!=", out, out.type(0))):
                by = [read(builder, number, width, moved(signal, REGISTER * v)) for v in range(vectors)]
                for row in range(ROWS):
                    for v in range(vectors):
                        at, total = builder.add(out, places[row * vectors + v]), sums[row * vectors + v]
                        before = read(builder, number, width, at)
                        write(builder, add_product(builder, by[v], builder.load(total), before), at)
            return context.get_dummy_value()

        return types.void(decay, types.UniTuple(types.int64, 9)), generate

    return intrinsic(typed)


_tile_1, _tile_2, _tile_3 = _tile(1), _tile(2), _tile(3)


@_loop
def _pack_columns(columns: Any, window: Any, at: int, term: int, terms: int, m: int, panel: int) -> None:
    """One term's m entries among the columns, which stand panel by panel, and in a panel term by term."""
    wide = REGISTER // columns.itemsize
    for start in range(0, m, panel):
        room = min(panel, -(-(m - start) // wide) * wide)
        _load(columns[start * terms + term * room :], window, at + start, min(panel, m - start))


@_loop
def _pack_rows(rows: Any, window: Any, at: int, term: int, distance: int, n: int) -> None:
    """One term's n factors among the rows, which stand in blocks of `ROWS`."""
    part = window[at : at + n]
    whole = n // ROWS
    for block in range(whole):
        to, start = block * distance + term * ROWS, block * ROWS
        for k in range(ROWS):
            rows[to + k] = part[start + k]
    for k in range(n - whole * ROWS):
        rows[whole * distance + term * ROWS + k] = part[whole * ROWS + k]


@_sum
def _add_product(out: Any, x: Any, factors: Any, n: int) -> None:
    for j in range(n):
        out[j] += factors[j] * x[j]


def advance_matrix(real: Any) -> Any:
    """A product of few terms for each lane, added to matrices that fade: read once, written once, maybe in place.

    Where there is a signal, their product with it, summed over lanes and nodes, on the way.
    """

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 17, np.int64)
        steps, lanes, nodes, m, n, stages, begin, end = a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]
        before, g = (
            carray(_pointer(a[8]), lanes * nodes * n * m, real),
            carray(_pointer(a[9]), steps * nodes * lanes * m, real),
        )
        border, taken = (
            carray(_pointer(a[10]), nodes * lanes * stages * m, real),
            carray(_pointer(a[11]), steps * lanes * n, real),
        )
        past, decay = carray(_pointer(a[12]), lanes * stages * n, real), carray(_pointer(a[13]), nodes, real)
        new = carray(_pointer(a[14]), lanes * nodes * n * m, real)
        carries = a[16] != 0
        size = before.itemsize
        wide = REGISTER // size
        mine = end - begin
        panel, terms, blocks = 3 * wide, steps + stages, -(-mine // ROWS)
        width_m = -(-m // wide) * wide
        distance = terms * ROWS
        rows, columns = _aligned(blocks * distance, real), _aligned(nodes * terms * width_m, real)
        edge, signals = _aligned(ROWS * panel, real), _aligned(nodes * width_m, real)
        total = np.zeros(mine * m if carries else 0, real)
        rows_at, columns_at, edge_at = _address(rows), _address(columns), _address(edge)
        signals_at, total_at = _address(signals), _address(total)
        for lane in range(lanes):
            for t in range(steps):
                _pack_rows(rows, taken, (t * lanes + lane) * n + begin, t, distance, mine)
            for s in range(stages):
                _pack_rows(rows, past, (lane * stages + s) * n + begin, steps + s, distance, mine)
            for h in range(nodes):
                of_node = columns[h * terms * width_m :]
                for t in range(steps):
                    _pack_columns(of_node, g, ((t * nodes + h) * lanes + lane) * m, t, terms, m, panel)
                for s in range(stages):
                    at = ((h * lanes + lane) * stages + s) * m
                    _pack_columns(of_node, border, at, steps + s, terms, m, panel)
                if carries:
                    signal = carray(_pointer(a[15]), lanes * nodes * m, real)
                    _load(signals[h * width_m :], signal, (lane * nodes + h) * m, m)
            for block in range(blocks):
                first = block * ROWS  # of mine
                there = min(ROWS, mine - first)
                for start in range(0, m, panel):
                    width = min(panel, m - start)
                    vectors = -(-width // wide)
                    room = vectors * wide
                    whole = there == ROWS and width == room
                    for h in range(nodes):
                        at = ((lane * nodes + h) * n + begin + first) * m + start
                        ahead = a[8] + size * (at + panel if start + panel < m else at - start + ROWS * m)
                        out_at = 0
                        if whole:
                            out_at = total_at + size * (first * m + start) if carries else 0
                            old_at, new_at, step = a[8] + size * at, a[14] + size * at, size * m
                        else:
                            for k in range(there):
                                _load(edge[k * room :], before, at + k * m, width)
                            old_at, new_at, step = edge_at, edge_at, size * room
                        factors = rows_at + size * block * distance
                        column = columns_at + size * (h * width_m + start) * terms
                        by = signals_at + size * (h * width_m + start)
                        places = (old_at, new_at, step, ahead, factors, column, terms, out_at, by)
                        if vectors == 3:
                            _tile_3(decay[h], places)
                        elif vectors == 2:
                            _tile_2(decay[h], places)
                        else:
                            _tile_1(decay[h], places)
                        if not whole:
                            for k in range(there):
                                _store(new, at + k * m, edge[k * room :], width)
                                if carries:
                                    row = total[(first + k) * m + start :]
                                    _add_product(row, edge[k * room :], signals[h * width_m + start :], width)
        if carries:
            bits.transpose(total_at, m, mine, m, a[16] + size * begin, n, size, False, real)
            total[0] = real(0)  # so that numba does not let go of it before: for it an address is no use

    return run


# -- the same for inputs that are spikes -------------------------------------------------------------------------------


def _advancing(vectors: int) -> Any:
    """One row of so many vectors, held in registers: `new = decay * old + past border + the rows that a word says`.

    Takes the addresses of both, of which `new` may be `old`, and of what will be `old` soon; the decay; the address of
    the past's factors, how many bytes it is from one to the next, the address of the rows that they are for, and how
    many there are; the address of the block of rows (see `bits`) and the word; the address of a row to which `new`
    times the signal is added, 0 for none, and that of the signal.
    """

    @instruction(types.void, *[types.int64] * 3, NUMBER, *[types.int64] * 5, types.uint64, *[types.int64] * 2)
    def advance(builder: Any, number: Any, arguments: list[Any]) -> None:
        old, new, ahead, decay, past, past_step, border, stages, block, word_0, out, signal = arguments
        size = size_of(number)
        count = vectors * bits.VECTOR // size
        vector, whole = ir.VectorType(number, count), ir.VectorType(ir.IntType(8 * size), count)
        for v in range(vectors):
            _fetch(builder, builder.add(ahead, ahead.type(v * bits.VECTOR)))
        x, total = read(builder, number, count, old), cgutils.alloca_once(builder, vector)
        exponent = builder.and_(builder.bitcast(x, whole), ir.Constant(whole, [EXPONENT[size]] * count))
        stays = builder.icmp_unsigned("!=", exponent, ir.Constant(whole, None))
        decayed = builder.fmul(x, spread(builder, vector, decay))
        builder.store(builder.select(stays, decayed, constant(vector, 0.0)), total)
        with cgutils.for_range(builder, stages) as loop:
            factor = read_one(builder, number, builder.add(past, builder.mul(loop.index, past_step)))
            place = builder.add(border, builder.mul(loop.index, stages.type(vectors * bits.VECTOR)))
            row = read(builder, number, count, place)
            builder.store(add_product(builder, spread(builder, vector, factor), row, builder.load(total)), total)
        with builder.if_then(builder.icmp_unsigned("!=", word_0, word_0.type(0))):
            builder.store(bits.add_rows(builder, number, vectors, block, word_0, builder.load(total)), total)
        write(builder, builder.load(total), new)
        with builder.if_then(builder.icmp_signed("!=", out, out.type(0))):
            by, sums = read(builder, number, count, signal), read(builder, number, count, out)
            write(builder, add_product(builder, by, builder.load(total), sums), out)

    return advance


_advance_1, _advance_2, _advance_4, _advance_8 = _advancing(1), _advancing(2), _advancing(4), _advancing(8)


@_loop
def _advance(
    vectors: int,
    old: int,
    new: int,
    ahead: int,
    fades: Any,
    past: int,
    past_step: int,
    border: int,
    stages: int,
    block: int,
    word: Any,
    out: int,
    signal: int,
    zero: Any,
) -> None:
    if vectors == 8:
        _advance_8(old, new, ahead, fades, past, past_step, border, stages, block, word, out, signal, zero)
    elif vectors == 4:
        _advance_4(old, new, ahead, fades, past, past_step, border, stages, block, word, out, signal, zero)
    elif vectors == 2:
        _advance_2(old, new, ahead, fades, past, past_step, border, stages, block, word, out, signal, zero)
    else:
        _advance_1(old, new, ahead, fades, past, past_step, border, stages, block, word, out, signal, zero)


@_loop
def _copy_rows(
    source: int, source_step: int, target: int, target_step: int, rows: int, columns: int, real: Any
) -> None:
    """Rows of so many numbers from one address to another, each with a distance of rows in bytes."""
    for r in range(rows):
        entries = carray(_pointer(source + r * source_step), columns, real)
        copy = carray(_pointer(target + r * target_step), columns, real)
        for i in range(columns):
            copy[i] = entries[i]


@_loop
def _turn_lane(turned: Any, spare: Any, words: int, in_step: int, steps: int, bit: int, inputs: int) -> None:
    """For up to 64 inputs of a lane, from a bit of each step on, the words of the steps that they are active in."""
    for top in range(0, steps, WORD):
        part = turned[top : top + WORD]
        part[:] = np.uint64(0)
        for t in range(min(WORD, steps - top)):
            part[t] = bits.word_at(carray(_pointer(words + (top + t) * in_step * 8), in_step, np.uint64), bit, inputs)
        bits.turn_words(part, spare)


def advance_matrix_bits(real: Any) -> Any:
    """`advance_matrix` for inputs that are spikes, kept as bits.

    Of each lane the rows that are added to others lie packed, for each node and up to eight vectors of neurons those of
    the border, the signal, and of blocks of 64 steps with a row of zeros after each.
    """
    size = np.dtype(real).itemsize
    side = bits.VECTOR // size

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 17, np.int64)
        steps, lanes, nodes, m, n, stages, begin, end = a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]
        decay, zero, one = carray(_pointer(a[13]), nodes, real), real(0), real(1)
        carries, chunks, in_step = a[16] != 0, -(-steps // WORD), -(-lanes * n // WORD)
        over = m % (8 * side)
        wide = m - over + bits.vectors_of(over, side) * side if over else m
        rows = stages + 1 + chunks * (WORD + 1)
        # nodes take turns after a few inputs, as long as what is added for all of them stays in the nearest cache
        at_once = AHEAD if nodes * (steps + stages + 1) * wide * size <= NEAR else WORD
        scratch = np.zeros((nodes * rows + (end - begin)) * wide + (8 * WORD + 1) * side, real)
        packed = bits.aligned(scratch)
        total = packed + nodes * rows * wide * size
        edge = total + (end - begin) * wide * size
        turned, spare = np.empty(chunks * WORD, np.uint64), np.empty(WORD, np.uint64)
        for lane in range(lanes):
            for h in range(nodes):
                for first in range(0, m, 8 * side):
                    width = min(8 * side, wide - first)
                    columns, step = min(width, m - first), width * size
                    place = packed + (h * wide + first) * rows * size
                    of_lane = (h * lanes + lane) * m
                    _copy_rows(a[10] + (of_lane * stages + first) * size, m * size, place, step, stages, columns, real)
                    place += stages * step
                    if carries:
                        signal = a[15] + ((lane * nodes + h) * m + first) * size
                        _copy_rows(signal, 0, place, step, 1, columns, real)
                    place += step
                    for top in range(0, steps, WORD):
                        g = a[9] + (top * nodes * lanes * m + of_lane + first) * size
                        _copy_rows(g, nodes * lanes * m * size, place, step, min(WORD, steps - top), columns, real)
                        place += (WORD + 1) * step
            for left in range(begin, end, WORD):
                inputs = min(WORD, end - left)
                _turn_lane(turned, spare, a[11], in_step, steps, lane * n + left, inputs)
                for part in range(0, inputs, at_once):
                    there = min(at_once, inputs - part)
                    for h in range(nodes):
                        for first in range(0, m, 8 * side):
                            width = min(8 * side, wide - first)
                            columns, step = min(width, m - first), width * size
                            border = packed + (h * wide + first) * rows * size
                            signal = border + stages * step
                            input_ = left + part
                            past = a[12] + (lane * stages * n + input_) * size
                            at = (((lane * nodes + h) * n + input_) * m + first) * size
                            old, new, distance = a[8] + at, a[14] + at, m * size
                            if columns < width:
                                _copy_rows(old, distance, edge, step, there, columns, real)
                                old, new, distance = edge, edge, step
                            for chunk in range(chunks):
                                block = signal + (1 + chunk * (WORD + 1)) * step
                                fades, pasts = (decay[h], stages) if chunk == 0 else (one, 0)
                                out = total + ((input_ - begin) * wide + first) * size
                                for j in range(there):
                                    _advance(
                                        width // side,
                                        old + j * distance,
                                        new + j * distance,
                                        a[8] + at + (j + AHEAD) * m * size,
                                        fades,
                                        past + j * size,
                                        n * size,
                                        border,
                                        pasts,
                                        block,
                                        turned[chunk * WORD + part + j],
                                        out + j * wide * size if carries and chunk == chunks - 1 else 0,
                                        signal,
                                        zero,
                                    )
                                old = new
                            if columns < width:
                                _copy_rows(edge, step, a[14] + at, m * size, there, columns, real)
        if carries:
            bits.transpose(total, wide, end - begin, m, a[16] + begin * size, n, size, False, real)
        scratch[0] = zero  # so that numba does not let go of it before: for it an address is no use

    return run


def carry_matrix(real: Any) -> Any:
    """Matrices, each row times its signal, summed over lanes and nodes: read once."""
    size = np.dtype(real).itemsize

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 8, np.int64)
        copies, m, n, begin, end = a[0], a[1], a[2], a[3], a[4]
        signals, rows = carray(_pointer(a[5]), copies * m, real), carray(_pointer(a[6]), copies * n * m, real)
        total = np.zeros((end - begin) * m, real)
        for first in range(begin, end, 8):  # rows that stay in the nearest cache
            for copy in range(copies):
                signal = signals[copy * m : copy * m + m]
                for j in range(first, min(first + 8, end)):
                    at = (copy * n + j) * m
                    _add_product(total[(j - begin) * m :], rows[at : at + m], signal, m)
        bits.transpose(_address(total), m, end - begin, m, a[7] + begin * size, n, size, False, real)
        total[0] = real(0)  # so that numba does not let go of it before: for it an address is no use

    return run


KERNELS: dict[str, Callable[[Any], Any]] = {
    kernel.__name__: kernel for kernel in (advance_matrix, advance_matrix_bits, carry_matrix)
}
