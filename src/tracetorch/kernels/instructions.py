"""LLVM's instructions, for what numba has no words for: vectors that stay in registers.

The functions here write them; `builder` is llvmlite's, addresses are integers. LLVM splits vectors that a processor
does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils
from numba.extending import intrinsic

_features = binding.get_host_cpu_features()
REGISTER = 64 if _features.get("avx512f") else 32 if _features.get("avx2") else 16  # bytes in one
MANY = bool(_features.get("avx512f")) or not _features.get("sse2")  # whether there are 32 of them; else 16

NUMBER = object()  # in a signature: the type of the numbers
_Write = Callable[[Any, Any, list[Any]], Any]


def instruction(result: Any, *arguments: Any) -> Callable[[_Write], Any]:
    """A function for kernels, of LLVM's instructions, which `body(builder, type of a number, arguments)` writes.

    It takes one more argument than is said here: any number, which says by its type what `NUMBER` is.
    """

    def decorate(body: _Write) -> Any:
        def typed(typing: Any, *given: Any) -> Any:  # noqa: ARG001
            def generate(context: Any, builder: Any, signature: Any, values: list[Any]) -> Any:
                written = body(builder, context.get_value_type(signature.args[-1]), values[:-1])
                return context.get_dummy_value() if written is None else written

            kinds = [given[-1] if kind is NUMBER else kind for kind in arguments]
            return result(*kinds, given[-1]), generate

        names = ["typing", *(f"argument_{i}" for i in range(len(arguments))), "number"]
        parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        typed.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        typed.__name__ = body.__name__
        return intrinsic(typed)

    return decorate


def size_of(number: Any) -> int:
    """The bytes of a number."""
    return 4 if isinstance(number, ir.FloatType) else 8


def read(builder: Any, number: Any, count: int, address: Any) -> Any:
    """So many numbers as a vector."""
    return builder.load(place(builder, address, ir.VectorType(number, count)), align=size_of(number))


def write(builder: Any, vector: Any, address: Any) -> None:
    """A vector of numbers to an address."""
    builder.store(vector, place(builder, address, vector.type), align=size_of(vector.type.element))


def constant(vector: Any, value: float) -> Any:
    """A vector of a value."""
    return ir.Constant(vector, [value] * vector.count)


def place(builder: Any, address: Any, kind: Any) -> Any:
    """An address as a pointer to a number or a vector."""
    return builder.inttoptr(address, kind.as_pointer())


def read_one(builder: Any, number: Any, address: Any) -> Any:
    """One number."""
    return builder.load(place(builder, address, number), align=size_of(number))


def spread(builder: Any, vector: Any, number: Any) -> Any:
    """A vector of this type, of one number."""
    lane = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.IntType(32)(0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
    return builder.shuffle_vector(lane, lane, mask)


def of_vectors(builder: Any, name: str, vector: Any, result: Any, taken: list[Any]) -> Any:
    """One of LLVM's own functions, for a type of vector."""
    kind = f"{name}.v{vector.count}f{8 * size_of(vector.element)}"
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, taken), kind)


def add_product(builder: Any, a: Any, b: Any, total: Any) -> Any:
    """`a b + total` of vectors, in one rounding where the processor can."""
    function = of_vectors(builder, "llvm.fmuladd", total.type, total.type, [total.type] * 3)
    return builder.call(function, [a, b, total])
