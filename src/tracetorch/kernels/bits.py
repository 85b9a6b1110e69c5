"""Kernels for spikes that are kept as bits; like `loops.py`, each takes the address of one table.

A window of spikes (K, B, n) has the words (K, ceil(B n / 64)): the spike (t, lane, j) is bit `(lane n + j) % 64` of
word `(lane n + j) // 64` of step t; bits beyond B n are 0. Rows are counted as `t B + lane`.

Products of spikes add up rows of a matrix, up to 64 of them for each word: a block of 64 rows, each up to 512 bytes,
stays in the first-level cache while all words that choose from it are gone through. Row 64 of a block is zero, since
64 is where the lowest one of a word is said to be that has none left. What numba has no words for is written in LLVM's,
which splits vectors that a processor does not have. Loops of numba in the place of `_add` take twice as long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types  # type: ignore[attr-defined]

from ..functional.spikes import WORD
from .instructions import NUMBER, constant, instruction, read, size_of, spread, write
from .jit import kernel as _kernel
from .jit import least_kept
from .jit import loop as _loop
from .jit import pointer as _pointer

VECTOR = 64  # bytes
ROWS = 256  # of a product's output that are run through before the next block of the matrix
INPUTS = 512  # of a gradient that are summed over all rows before the next ones
AT_ONCE = 2  # rows of a matrix that are added at a time


# -- instructions ------------------------------------------------------------------------------------------------------


def _as_flags(builder: Any, word: Any) -> Any:
    return builder.bitcast(word, ir.VectorType(ir.IntType(1), WORD))


@instruction(types.uint64, types.int64)
def _not_zero(builder: Any, number: Any, arguments: list[Any]) -> Any:
    """Of 64 numbers at an address, a word of those that are not 0, NaN among them."""
    x = read(builder, number, WORD, arguments[0])
    return builder.bitcast(builder.fcmp_unordered("!=", x, constant(x.type, 0.0)), ir.IntType(WORD))


@instruction(types.uint64, types.int64)
def _one(builder: Any, number: Any, arguments: list[Any]) -> Any:
    """Of 64 numbers at an address, a word of those that are 1."""
    x = read(builder, number, WORD, arguments[0])
    return builder.bitcast(builder.fcmp_ordered("==", x, constant(x.type, 1.0)), ir.IntType(WORD))


@instruction(types.int64, types.uint64)
def _count(builder: Any, number: Any, arguments: list[Any]) -> Any:  # noqa: ARG001
    """The ones of a word."""
    return builder.ctpop(arguments[0])


@instruction(types.void, types.uint64, types.int64)
def unpack_word(builder: Any, number: Any, arguments: list[Any]) -> None:
    """A word as 64 numbers, at an address."""
    word, target = arguments
    write(builder, builder.uitofp(_as_flags(builder, word), ir.VectorType(number, WORD)), target)


@instruction(types.void, types.int64, types.int64, types.int64, types.int64, types.int64, NUMBER, NUMBER)
def _fold_column(builder: Any, number: Any, arguments: list[Any]) -> None:
    """64 traces over the steps of a window: read at one address, written at another, small ones as 0."""
    words, stride, steps, old, new, decay, least = arguments
    z_0 = read(builder, number, WORD, old)
    decays, ones = spread(builder, z_0.type, decay), constant(z_0.type, 1.0)
    before = builder.block
    body, after = builder.append_basic_block("step"), builder.append_basic_block("folded")
    builder.branch(body)
    builder.position_at_end(body)
    t, z = builder.phi(steps.type), builder.phi(z_0.type)
    place = builder.inttoptr(builder.add(words, builder.mul(t, stride)), ir.IntType(WORD).as_pointer())
    faded = builder.fmul(z, decays)
    z_1 = builder.select(_as_flags(builder, builder.load(place)), builder.fadd(ones, faded), faded)
    t_1 = builder.add(t, t.type(1))
    builder.cbranch(builder.icmp_signed("<", t_1, steps), body, after)
    for phi, first, next_ in ((t, t.type(0), t_1), (z, z_0, z_1)):
        phi.add_incoming(first, before)
        phi.add_incoming(next_, body)
    builder.position_at_end(after)
    bound = spread(builder, z_0.type, least)
    large = builder.or_(builder.fcmp_ordered(">", z_1, bound), builder.fcmp_ordered("<", z_1, builder.fneg(bound)))
    write(builder, builder.select(large, z_1, constant(z_1.type, 0.0)), new)


def add_rows(builder: Any, number: Any, vectors: int, block: Any, word_0: Any, total_0: Any) -> Any:
    """The sum of a row, so many vectors long, and those rows of a block of 64 that a word, which is not 0, says."""
    width = total_0.type.count
    before = builder.block
    body, after = builder.append_basic_block("rows"), builder.append_basic_block("added")
    builder.branch(body)
    builder.position_at_end(body)
    word, total = builder.phi(word_0.type), builder.phi(total_0.type)
    left, rows = word, []
    for _ in range(AT_ONCE):
        lowest = builder.cttz(left, ir.IntType(1)(0))
        left = builder.and_(left, builder.sub(left, left.type(1)))
        place = builder.add(block, builder.mul(lowest, lowest.type(vectors * VECTOR)))
        rows.append(read(builder, number, width, place))
    while len(rows) > 1:
        rows = [builder.fadd(a, b) for a, b in zip(rows[::2], rows[1::2], strict=True)]
    total_1 = builder.fadd(total, rows[0])
    builder.cbranch(builder.icmp_unsigned("!=", left, left.type(0)), body, after)
    for phi, first, next_ in ((word, word_0, left), (total, total_0, total_1)):
        phi.add_incoming(first, before)
        phi.add_incoming(next_, body)
    builder.position_at_end(after)
    return total_1


def _adding(vectors: int) -> Any:
    """Add rows of a block of 64 to what is at an address, those that a word says; a row is so many vectors long.

    They are summed first, and the sum is added: long sums lose fewer digits.
    """

    @instruction(types.void, types.int64, types.int64, types.uint64)
    def _add(builder: Any, number: Any, arguments: list[Any]) -> None:
        block, target, word = arguments
        width = vectors * VECTOR // size_of(number)
        nothing = constant(ir.VectorType(number, width), 0.0)
        total = add_rows(builder, number, vectors, block, word, nothing)
        write(builder, builder.fadd(read(builder, number, width, target), total), target)

    return _add


_add_1, _add_2, _add_4, _add_8 = _adding(1), _adding(2), _adding(4), _adding(8)


def _turning(adds: bool) -> Any:
    """Transpose a square of numbers as wide as a vector, from one address to another, each with a distance of rows."""

    @instruction(types.void, types.int64, types.int64, types.int64, types.int64)
    def _turn(builder: Any, number: Any, arguments: list[Any]) -> None:
        source, source_step, target, target_step = arguments
        side = VECTOR // size_of(number)

        def at(address: Any, step: Any, row: int) -> Any:
            return builder.add(address, builder.mul(step, step.type(row)))

        rows = [read(builder, number, side, at(source, source_step, i)) for i in range(side)]
        half = side // 2
        while half:  # swap the upper right and the lower left quarter of each square of 2 half rows
            lane = [j for j in range(side) if not j & half]
            kinds = ir.VectorType(ir.IntType(32), side)
            upper = ir.Constant(kinds, [j if not j & half else side + j - half for j in range(side)])
            lower = ir.Constant(kinds, [j + half if not j & half else side + j for j in range(side)])
            for i in lane:
                a, b = rows[i], rows[i + half]
                rows[i], rows[i + half] = builder.shuffle_vector(a, b, upper), builder.shuffle_vector(a, b, lower)
            half //= 2
        for i, row in enumerate(rows):
            place = at(target, target_step, i)
            write(builder, builder.fadd(read(builder, number, side, place), row) if adds else row, place)

    return _turn


_turn, _turn_and_add = _turning(False), _turning(True)


# -- loops -------------------------------------------------------------------------------------------------------------


@_loop
def word_at(words: Any, bit: int, count: int) -> Any:
    """So many bits, at most 64, from one on; `words` are those of a step."""
    word, shift = bit >> 6, np.uint64(bit & 63)
    low = words[word] >> shift
    high = words[min(word + 1, len(words) - 1)]
    found = low | (high << (np.uint64(63) - shift)) << np.uint64(1)
    if count < WORD:
        found &= (np.uint64(1) << np.uint64(count)) - np.uint64(1)
    return found


@_loop
def vectors_of(columns: int, lanes: int) -> int:
    """How many vectors of so many lanes a row of these columns is stored in, 1, 2, 4 or 8; the rest comes later."""
    vectors = 1
    while vectors < 8 and vectors * lanes < columns:
        vectors *= 2
    return vectors


@_loop
def _add(block: int, target: int, word: Any, vectors: int, zero: Any) -> None:
    if vectors == 8:
        _add_8(block, target, word, zero)
    elif vectors == 4:
        _add_4(block, target, word, zero)
    elif vectors == 2:
        _add_2(block, target, word, zero)
    else:
        _add_1(block, target, word, zero)


@_loop
def aligned(scratch: Any) -> int:
    """The first address in an array at the border of a vector."""
    address: int = scratch.ctypes.data
    return -(-address // VECTOR) * VECTOR


@_loop
def transpose(
    source: int,
    source_step: int,
    rows: int,
    columns: int,
    target: int,
    target_step: int,
    size: int,
    adds: bool,
    real: Any,
) -> None:
    """`target[j, i] = source[i, j]`, or added to it; of numbers at addresses, rows `step` numbers apart."""
    zero, side = real(0), VECTOR // size
    for i in range(0, rows, side):
        for j in range(0, columns, side):
            here, there = source + (i * source_step + j) * size, target + (j * target_step + i) * size
            height, width = min(side, rows - i), min(side, columns - j)
            if height == side and width == side:
                if adds:
                    _turn_and_add(here, source_step * size, there, target_step * size, zero)
                else:
                    _turn(here, source_step * size, there, target_step * size, zero)
                continue
            for p in range(height):
                row = carray(_pointer(here + p * source_step * size), width, real)
                for q in range(width):
                    entry = carray(_pointer(there + (q * target_step + p) * size), 1, real)
                    entry[0] = entry[0] + row[q] if adds else row[q]


def pack(real: Any) -> Any:
    """Numbers as bits; whether there is one that is neither 0 nor 1, and the number of ones of each part."""
    width = np.dtype(real).itemsize

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 8, np.int64)
        begin, end, size, unit = a[0], a[1], a[2], a[3]
        words = carray(_pointer(a[5]), end, np.uint64)
        strange, counts = carray(_pointer(a[6]), 1, np.int64), carray(_pointer(a[7]), end // unit + 1, np.int64)
        in_step = -(-size // WORD)
        rest = np.zeros(WORD, real)
        zero, ones, other = real(0), 0, np.uint64(0)
        step, first = begin // in_step, begin % in_step * WORD
        for i in range(begin, end):
            place = a[4] + (step * size + first) * width
            if size - first < WORD:
                x = carray(_pointer(place), size - first, real)
                for j in range(size - first):
                    rest[j] = x[j]
                place = rest.ctypes.data
            word = _not_zero(place, zero)
            other |= word ^ _one(place, zero)
            ones += _count(word, zero)
            words[i] = word
            first += WORD
            if first >= size:
                step, first = step + 1, 0
        counts[begin // unit] = ones
        if other != np.uint64(0):
            strange[0] = 1

    return run


def unpack(real: Any) -> Any:
    """A range of rows as numbers."""
    width = np.dtype(real).itemsize

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 6, np.int64)
        lanes, n, begin, end, out = a[0], a[1], a[2], a[3], a[5]
        size, row, zero = lanes * n, begin, real(0)
        in_step = -(-size // WORD)
        rest = np.zeros(WORD, real)
        while row < end:
            step, lane = row // lanes, row % lanes
            more = min(lanes - lane, end - row)  # rows that follow each other, in the words too
            words = carray(_pointer(a[4] + step * in_step * 8), in_step, np.uint64)
            bit, last = lane * n, (lane + more) * n
            while bit < last:
                count = min(WORD, last - bit)
                word = word_at(words, bit, count)
                if count == WORD:
                    unpack_word(word, out, zero)
                else:
                    unpack_word(word, rest.ctypes.data, zero)
                    part = carray(_pointer(out), count, real)
                    for j in range(count):
                        part[j] = rest[j]
                out += count * width
                bit += count
            row += more

    return run


def fold_bits(real: Any) -> Any:
    """`loops.fold`, of bits."""
    width, least = np.dtype(real).itemsize, least_kept(real)

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 12, np.int64)
        steps, size, lanes, begin, end = a[0], a[1], a[2], a[3], a[4]
        old, new = carray(_pointer(a[6]), size, real), carray(_pointer(a[7]), size, real)
        decay = carray(_pointer(a[8]), 1, real)[0]
        rest = np.zeros(WORD, real)
        stride = -(-size // WORD) * 8
        for start in range(begin, end, WORD):
            words, n = a[5] + start // WORD * 8, min(WORD, end - start)
            if n == WORD:
                _fold_column(words, stride, steps, a[6] + start * width, a[7] + start * width, decay, least, decay)
                continue
            for i in range(n):
                rest[i] = old[start + i]
            _fold_column(words, stride, steps, rest.ctypes.data, rest.ctypes.data, decay, least, decay)
            for i in range(n):
                new[start + i] = rest[i]
        if a[9] != 0 and begin == 0:
            ones, advanced = carray(_pointer(a[9]), lanes, real), carray(_pointer(a[10]), lanes, real)
            for lane in range(lanes):
                count = ones[lane]
                for _ in range(steps):
                    count = real(1) + count * decay
                advanced[lane] = count

    return run


def panels(real: Any) -> Any:
    """Weights (m, n) as `gather` reads them: for each 512 bytes of outputs, for each 64 inputs, 64 rows and one of 0.

    The last outputs may have shorter rows; what is beyond m and n is 0.
    """
    size = np.dtype(real).itemsize
    side = VECTOR // size

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 6, np.int64)
        n, m, begin, end = a[0], a[1], a[2], a[3]
        zero = real(0)
        blocks = -(-n // WORD)
        for first in range(0, m, 8 * side):
            width = vectors_of(m - first, side) * side
            columns = min(width, m - first)
            for block in range(begin // WORD, -(-end // WORD)):
                place = a[5] + (first * blocks + block * width) * (WORD + 1) * size
                inputs = min(WORD, n - block * WORD)
                numbers = carray(_pointer(place), (WORD + 1) * width, real)
                numbers[(WORD if columns == width else 0) * width :] = zero
                source = a[4] + (first * n + block * WORD) * size
                transpose(source, n, columns, inputs, place, width, size, False, real)

    return run


def gather(real: Any) -> Any:
    """The product of spikes and weights, and a bias where there is one, for a range of rows."""
    size = np.dtype(real).itemsize
    side = VECTOR // size

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 9, np.int64)
        lanes, n, m, begin, end = a[0], a[1], a[2], a[3], a[4]
        zero, bias = real(0), carray(_pointer(a[8]), m, real)
        first_row = np.zeros(8 * side, real)
        in_step, blocks = -(-lanes * n // WORD), -(-n // WORD)
        scratch = np.empty((ROWS + 1) * 8 * side, real)
        for first in range(0, m, 8 * side):
            vectors = vectors_of(m - first, side)
            width = vectors * side
            columns = min(width, m - first)
            for top in range(begin, end, ROWS):
                rows = min(ROWS, end - top)
                out, step = a[7] + (top * m + first) * size, m * size
                target = out
                if width < m or columns < width:
                    target, step = aligned(scratch), width * size
                for i in range(columns if a[8] != 0 else 0):
                    first_row[i] = bias[first + i]
                for r in range(rows):
                    carray(_pointer(target + r * step), width, real)[:] = first_row[:width]
                for block in range(blocks):
                    matrix = a[6] + (first * blocks + block * width) * (WORD + 1) * size
                    count = min(WORD, n - block * WORD)
                    t, lane = top // lanes, top % lanes
                    for r in range(rows):
                        words = carray(_pointer(a[5] + t * in_step * 8), in_step, np.uint64)
                        word = word_at(words, lane * n + block * WORD, count)
                        if word != np.uint64(0):
                            _add(matrix, target + r * step, word, vectors, zero)
                        lane += 1
                        if lane == lanes:
                            t, lane = t + 1, 0
                if target != out:
                    for r in range(rows):
                        row = carray(_pointer(out + r * m * size), columns, real)
                        sums = carray(_pointer(target + r * step), columns, real)
                        for i in range(columns):
                            row[i] = sums[i]

    return run


@_loop
def turn_words(x: Any, y: Any) -> None:
    """Transpose 64 words of 64 bits; y is scratch."""
    mask, shift = np.uint64(0xFFFFFFFF), 32
    while shift:
        by = np.uint64(shift)
        for first in range(0, WORD, 2 * shift):
            low, high = x[first : first + shift], x[first + shift : first + 2 * shift]
            for k in range(shift):
                y[k] = ((low[k] >> by) ^ high[k]) & mask
            for k in range(shift):
                high[k] ^= y[k]
            for k in range(shift):
                low[k] ^= y[k] << by
        shift >>= 1
        mask ^= mask << np.uint64(shift)


def turn(_real: Any) -> Any:
    """For each 64 rows and each of a range of inputs, a word of the rows that it is active in: (ceil(rows / 64), n)."""

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 7, np.int64)
        rows, lanes, n, begin, end = a[0], a[1], a[2], a[3], a[4]
        in_step = -(-lanes * n // WORD)
        x, y = np.empty(WORD, np.uint64), np.empty(WORD, np.uint64)
        for top in range(0, rows, WORD):
            out = carray(_pointer(a[6] + top // WORD * n * 8), n, np.uint64)
            for first in range(begin, end, WORD):
                count = min(WORD, end - first)
                t, lane = top // lanes, top % lanes
                x[:] = np.uint64(0)
                for r in range(min(WORD, rows - top)):
                    words = carray(_pointer(a[5] + t * in_step * 8), in_step, np.uint64)
                    x[r] = word_at(words, lane * n + first, count)
                    lane += 1
                    if lane == lanes:
                        t, lane = t + 1, 0
                turn_words(x, y)
                for j in range(count):
                    out[first + j] = x[j]

    return run


def gather_t(real: Any) -> Any:
    """The gradient of weights, for a range of inputs, of the words of `turn`.

    Where sums are kept it is added to these, not yet transposed: for each 512 bytes of outputs a row for each input,
    for the last outputs a shorter one.
    """
    size = np.dtype(real).itemsize
    side = VECTOR // size

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 10, np.int64)
        rows, n, m, begin, end, adds, kept = a[0], a[1], a[2], a[3], a[4], a[5] != 0, a[9]
        zero = real(0)
        scratch = np.empty((INPUTS + WORD + 2) * 8 * side, real)
        block = aligned(scratch)
        total = block + (WORD + 1) * 8 * VECTOR
        for first in range(0, m, 8 * side):
            vectors = vectors_of(m - first, side)
            width = vectors * side
            columns = min(width, m - first)
            carray(_pointer(block), (WORD + 1) * width, real)[:] = zero
            for left in range(begin, end, INPUTS):
                inputs = min(INPUTS, end - left)
                sums = carray(_pointer(total), inputs * width, real)
                sums[:] = zero
                for top in range(0, rows, WORD):
                    for r in range(min(WORD, rows - top)):
                        row = carray(_pointer(a[7] + ((top + r) * m + first) * size), columns, real)
                        copy = carray(_pointer(block + r * width * size), columns, real)
                        for i in range(columns):
                            copy[i] = row[i]
                    words = carray(_pointer(a[6] + (top // WORD * n + left) * 8), inputs, np.uint64)
                    for j in range(inputs):
                        if words[j] != np.uint64(0):
                            _add(block, total + j * width * size, words[j], vectors, zero)
                if kept != 0:
                    known = carray(_pointer(kept + (first * n + left * width) * size), inputs * width, real)
                    for i in range(inputs * width):
                        known[i] += sums[i]
                else:
                    transpose(total, width, inputs, columns, a[8] + (first * n + left) * size, n, size, adds, real)
        scratch[0] = zero  # so that numba does not let go of it before: for it an address is no use

    return run


def turn_back(real: Any) -> Any:
    """The sums that `gather_t` kept as the gradient (m, n) of weights, for a range of inputs; may be added to it."""
    size = np.dtype(real).itemsize
    side = VECTOR // size

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 7, np.int64)
        n, m, begin, end, adds = a[0], a[1], a[2], a[3], a[4] != 0
        for first in range(0, m, 8 * side):
            width = vectors_of(m - first, side) * side
            source, target = a[5] + (first * n + begin * width) * size, a[6] + (first * n + begin) * size
            transpose(source, width, end - begin, min(width, m - first), target, n, size, adds, real)

    return run


KERNELS: dict[str, Callable[[Any], Any]] = {
    kernel.__name__: kernel for kernel in (pack, unpack, fold_bits, panels, gather, turn, gather_t, turn_back)
}
