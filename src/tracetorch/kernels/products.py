"""Dense products of few rows, and kernels one after the other; like `loops.py`, each takes the address of one table.

Where a window has few rows, the calls of a library take as long as its products. These here can be run one after the
other, with scans between them, in a single call (`chain`). A tile of the result is held in registers until all its
terms are added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.extending import intrinsic

from .instructions import REGISTER, add_product, constant, of_vectors, place, read, read_one, size_of, spread, write
from .jit import kernel as _kernel
from .jit import loop as _loop
from .jit import pointer as _pointer

ROWS = 4  # of a tile
VECTORS = 4 if REGISTER == 64 else 2  # side by side in a row of it: half of the registers in all, or a bit more


def _call(typing: Any, function: Any, argument: Any) -> Any:  # noqa: ARG001
    """Call what is at an address with one integer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        kind = ir.FunctionType(ir.VoidType(), [cgutils.intp_t])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [arguments[1]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


_run: Any = intrinsic(_call)


def _at(builder: Any, address: Any, step: Any, count: int) -> Any:
    """An address, so many steps further."""
    return builder.add(address, builder.mul(step, step.type(count)))


def _sums(
    builder: Any, vector: Any, count: int, terms: Any, products: Callable[[Any], list[tuple[Any, Any]]]
) -> list[Any]:
    """So many sums of products of vectors, held in registers; `products` gives the factors of each for the term k."""
    nothing = constant(vector, 0.0)
    before = builder.block
    body, after = builder.append_basic_block("term"), builder.append_basic_block("summed")
    builder.cbranch(builder.icmp_signed(">", terms, terms.type(0)), body, after)
    builder.position_at_end(body)
    k = builder.phi(terms.type)
    totals = [builder.phi(vector) for _ in range(count)]
    new = [add_product(builder, a, b, total) for (a, b), total in zip(products(k), totals, strict=True)]
    following = builder.add(k, k.type(1))
    last = builder.block
    builder.cbranch(builder.icmp_signed("<", following, terms), body, after)
    for phi, first, next_ in ((k, k.type(0), following), *((t, nothing, n) for t, n in zip(totals, new, strict=True))):
        phi.add_incoming(first, before)
        phi.add_incoming(next_, last)
    builder.position_at_end(after)
    found = [builder.phi(vector) for _ in range(count)]
    for phi, value in zip(found, new, strict=True):
        phi.add_incoming(nothing, before)
        phi.add_incoming(value, last)
    return found


def _outer(rows: int, vectors: int) -> Any:
    """A tile of `out = factors^T matrix`: so many rows of so many vectors.

    Takes a number, of the type of all, and a tuple of integers: the address of the factors, how many bytes it is from a
    row's factor to the next's, and from a term's to the next's; the address of the matrix, and how many bytes it is
    from a term's row to the next's; the number of terms; the address of what is written, and how many bytes it is from
    a row to the next; whether it is added to.
    """

    def typed(typing: Any, zero: Any, integers: Any) -> Any:  # noqa: ARG001
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            number = context.get_value_type(signature.args[0])
            width = REGISTER // size_of(number)
            vector = ir.VectorType(number, width)
            given = cgutils.unpack_tuple(builder, arguments[1], 9)
            factors, of_row, of_term, matrix, step, terms, out, out_step, adds = given
            adds = builder.icmp_signed("!=", adds, adds.type(0))
            places = [
                builder.add(_at(builder, out, out_step, row), out.type(REGISTER * v))
                for row in range(rows)
                for v in range(vectors)
            ]

            def products(k: Any) -> list[tuple[Any, Any]]:
                factor = builder.add(factors, builder.mul(k, of_term))
                column = builder.add(matrix, builder.mul(k, step))
                parts = [builder.add(column, column.type(REGISTER * v)) for v in range(vectors)]
                taken = [read(builder, number, width, part) for part in parts]
                by = [read_one(builder, number, _at(builder, factor, of_row, row)) for row in range(rows)]
                return [(spread(builder, vector, a), b) for a in by for b in taken]

            found = _sums(builder, vector, len(places), terms, products)
            with builder.if_else(adds) as (then, otherwise):
                with then:
                    for there, total in zip(places, found, strict=True):
                        write(builder, builder.fadd(read(builder, number, width, there), total), there)
                with otherwise:
                    for there, total in zip(places, found, strict=True):
                        write(builder, total, there)
            return context.get_dummy_value()

        return types.void(zero, types.UniTuple(types.int64, 9)), generate

    return intrinsic(typed)


def _inner(rows: int, columns: int) -> Any:
    """A tile of `out = x weight^T`, over whole vectors.

    Takes a number, of the type of all, and a tuple of integers: the address of x, and how many bytes it is from a row
    to the next; the same of the weights; the number of vectors; the address of what is written, and how many bytes it
    is from a row to the next.
    """

    def typed(typing: Any, zero: Any, integers: Any) -> Any:  # noqa: ARG001
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            number = context.get_value_type(signature.args[0])
            size = size_of(number)
            width = REGISTER // size
            vector = ir.VectorType(number, width)
            x, x_step, weight, weight_step, vectors, out, out_step = cgutils.unpack_tuple(builder, arguments[1], 7)

            def products(k: Any) -> list[tuple[Any, Any]]:
                along = builder.mul(k, k.type(REGISTER))

                def part(start: Any, step: Any, row: int) -> Any:
                    return read(builder, number, width, builder.add(_at(builder, start, step, row), along))

                left = [part(x, x_step, row) for row in range(rows)]
                right = [part(weight, weight_step, i) for i in range(columns)]
                return [(a, b) for a in left for b in right]

            found = _sums(builder, vector, rows * columns, vectors, products)
            add_up = of_vectors(builder, "llvm.vector.reduce.fadd", vector, number, [number, vector])
            for row in range(rows):
                for i in range(columns):
                    total = builder.call(add_up, [number(0.0), found[row * columns + i]], fastmath=("reassoc",))
                    there = builder.add(_at(builder, out, out_step, row), out.type(i * size))
                    builder.store(total, place(builder, there, number), align=size)
            return context.get_dummy_value()

        return types.void(zero, types.UniTuple(types.int64, 7)), generate

    return intrinsic(typed)


_outer_tile, _outer_column, _outer_row, _outer_vector = (
    _outer(rows, vectors) for rows in (ROWS, 1) for vectors in (VECTORS, 1)
)
_inner_tile, _inner_column, _inner_row, _inner_one = (
    _inner(rows, columns) for rows in (ROWS, 1) for columns in (ROWS, 1)
)


def chain(_real: Any) -> Any:
    """Kernels one after the other.

    The table: how many; then of each its address, that of its table, and that of an integer: where that is 0 after it
    has run, those that follow are not run.
    """

    @_kernel
    def run(address: int) -> None:
        count = carray(_pointer(address), 1, np.int64)[0]
        each = carray(_pointer(address + 8), 3 * count, np.int64)
        for i in range(count):
            _run(each[3 * i], each[3 * i + 1])
            flag = each[3 * i + 2]
            if flag != 0 and carray(_pointer(flag), 1, np.int64)[0] == 0:
                return

    return run


@_loop
def add_outer(sizes: Any, factors: Any, matrix: int, out: int, adds: int, zero: Any, size: int, real: Any) -> None:
    """`out (rows, columns) = factors^T matrix`, or added to it: factors (terms, rows), matrix (terms, columns).

    Takes rows, columns and terms; the address of the factors, and how many bytes it is from a row's to the next's, and
    from a term's; the addresses of matrix and result; a 0, the size and the type of the numbers.
    """
    rows, columns, terms = sizes
    start, of_row, of_term = factors
    width, step, left = REGISTER // size, columns * size, 0
    while left + width <= columns:
        wide = left + VECTORS * width <= columns
        row = 0
        while row < rows:
            here, there = matrix + left * size, out + left * size + row * step
            given = (start + row * of_row, of_row, of_term, here, step, terms, there, step, adds)
            if row + ROWS <= rows:
                if wide:
                    _outer_tile(zero, given)
                else:
                    _outer_column(zero, given)
                row += ROWS
            else:
                if wide:
                    _outer_row(zero, given)
                else:
                    _outer_vector(zero, given)
                row += 1
        left += VECTORS * width if wide else width
    if left == columns:
        return
    entries = carray(_pointer(matrix), terms * columns, real)
    for row in range(rows):
        sums = carray(_pointer(out + row * step), columns, real)
        if adds == 0:
            for j in range(left, columns):
                sums[j] = zero
        for k in range(terms):
            factor = carray(_pointer(start + row * of_row + k * of_term), 1, real)[0]
            for j in range(left, columns):
                sums[j] += factor * entries[k * columns + j]


@_loop
def multiply(sizes: Any, x: int, weight: int, out: int, zero: Any, size: int, real: Any) -> None:
    """`out (rows, columns) = x weight^T`: x (rows, n), weight (columns, n).

    Takes rows, columns and n; three addresses; a 0, the size and the type of the numbers.
    """
    rows, columns, n = sizes
    step, out_step, vectors = n * size, columns * size, n * size // REGISTER
    i = 0
    while i < columns:
        tall = i + ROWS <= columns
        row = 0
        while row < rows:
            there = out + row * out_step + i * size
            given = (x + row * step, step, weight + i * step, step, vectors, there, out_step)
            if row + ROWS <= rows:
                if tall:
                    _inner_tile(zero, given)
                else:
                    _inner_column(zero, given)
                row += ROWS
            else:
                if tall:
                    _inner_row(zero, given)
                else:
                    _inner_one(zero, given)
                row += 1
        i += ROWS if tall else 1
    first = vectors * REGISTER // size
    if first == n:
        return
    sums = carray(_pointer(out), rows * columns, real)
    inputs, weights = carray(_pointer(x), rows * n, real), carray(_pointer(weight), columns * n, real)
    for row in range(rows):
        for i in range(columns):
            total = sums[row * columns + i]
            for j in range(first, n):
                total += inputs[row * n + j] * weights[i * n + j]
            sums[row * columns + i] = total


def outer(real: Any) -> Any:
    """See `add_outer`; the table has the distances between factors in numbers."""
    size = np.dtype(real).itemsize

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 9, np.int64)
        factors = (a[3], a[4] * size, a[5] * size)
        add_outer((a[0], a[1], a[2]), factors, a[6], a[7], a[8], real(0), size, real)

    return run


def inner(real: Any) -> Any:
    """See `multiply`."""
    size = np.dtype(real).itemsize

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 6, np.int64)
        multiply((a[0], a[1], a[2]), a[3], a[4], a[5], real(0), size, real)

    return run


def decayed_sum(real: Any) -> Any:
    """`out = x + decay * decayed`."""

    @_kernel
    def run(address: int) -> None:
        a = carray(_pointer(address), 5, np.int64)
        n, decay = a[0], carray(_pointer(a[3]), 1, real)[0]
        x, decayed = carray(_pointer(a[1]), n, real), carray(_pointer(a[2]), n, real)
        out = carray(_pointer(a[4]), n, real)
        for i in range(n):
            out[i] = x[i] + decay * decayed[i]

    return run


KERNELS: dict[str, Callable[[Any], Any]] = {kernel.__name__: kernel for kernel in (chain, outer, inner, decayed_sum)}
