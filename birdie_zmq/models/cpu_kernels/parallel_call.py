"""Operations of XLA that are computed by a Numba function, in the threads of XLA's CPU client.

XLA calls a handler by its foreign function interface (https://docs.jax.dev/en/latest/ffi.html). The handler returns at
once, with a future. Tasks in XLA's thread pool share the items of the call between them, and the last one completes the
future. No task waits, so calls of several steps can share the pool.

The structures are those of ``xla/ffi/api/c_api.h``, as arrays of 64-bit words; XLA keeps this interface stable.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

NUMBA_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False}
"""The options of functions that run without the interpreter: they raise nothing."""

VECTOR_OPTIONS: dict[str, Any] = {**NUMBA_OPTIONS, "fastmath": {"contract", "nsz", "reassoc", "arcp"}}
"""The same, for sums that may be reordered so that they are computed by vectors."""

_API_VERSION = (0, 1)
"""The version of the interface whose structures these are; the first with futures."""

# Indices of words in structures of the interface.
_EXTENSION, _API, _CONTEXT, _ARGUMENTS, _RESULTS, _FUTURE = 1, 2, 3, 9, 14, 21  # of XLA_FFI_CallFrame
_SCHEDULE, _COUNT_THREADS, _CREATE_FUTURE, _COMPLETE_FUTURE = 17, 18, 19, 20  # of XLA_FFI_Api
_BUFFER_DATA = 3  # of XLA_FFI_Buffer
_METADATA = 3  # of XLA_FFI_Metadata_Extension
_METADATA_EXTENSION = 1  # the type of that extension

# Indices of words of the memory that the tasks of a call share.
_RUNNING, _NEXT_ITEM, _COMPLETE, _CALL_FUTURE, _ADDRESSES = range(5)
_MAX_BUFFERS, _MAX_SIZES = 12, 12


@intrinsic  # type: ignore[untyped-decorator]
def pointer_at(typing_context: Any, address: Any) -> Any:
    """Return an address as a pointer."""
    del typing_context, address

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return numba.types.voidptr(numba.types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _address_of(typing_context: Any, pointer: Any) -> Any:
    """Return the address of a pointer."""
    del typing_context, pointer

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return builder.ptrtoint(arguments[0], ir.IntType(64))

    return numba.types.int64(numba.types.voidptr), generate


@intrinsic  # type: ignore[untyped-decorator]
def _call(typing_context: Any, function: Any, argument: Any) -> Any:
    """Call the C function at an address with a pointer to its arguments; return its result, an address."""
    del typing_context, function, argument

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        word = ir.IntType(64)
        function = builder.inttoptr(arguments[0], ir.FunctionType(word, [word]).as_pointer())
        return builder.call(function, [arguments[1]])

    return numba.types.int64(numba.types.int64, numba.types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _fetch_add(typing_context: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at an address, atomically; return what it was before."""
    del typing_context, address, value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")

    return numba.types.int64(numba.types.int64, numba.types.int64), generate


@numba.njit(**NUMBA_OPTIONS)  # type: ignore[untyped-decorator]
def words_at(address: Any, count: Any) -> Any:
    """Return the int64 array [count] at an address."""
    return numba.carray(pointer_at(address), (count,), np.int64)


@numba.njit(**NUMBA_OPTIONS)  # type: ignore[untyped-decorator]
def integers_at(address: Any, count: Any) -> Any:
    """Return the int32 array [count] at an address."""
    return numba.carray(pointer_at(address), (count,), np.int32)


@numba.njit(**NUMBA_OPTIONS)  # type: ignore[untyped-decorator]
def floats_at(address: Any, shape: Any) -> Any:
    """Return the float32 array of a shape at an address."""
    return numba.carray(pointer_at(address), shape, np.float32)


def kernel(function: Callable[[Any, Any, Any], None], options: Mapping[str, Any]) -> Callable[[Any, Any, Any], None]:
    """Return a function for `ParallelCall`, to be compiled by Numba with some options, and kept on disk if a folder is there."""
    try:
        return numba.njit(cache=True, **options)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return numba.njit(**options)(function)  # type: ignore[no-any-return]


class ParallelCall:
    """An operation of XLA whose items are computed by a Numba function, several at a time.

    Args:
        name: The name under which XLA knows it.
        compute: A function ``(item, addresses, sizes)`` that Numba compiles, as `kernel` returns it. It computes the item of a number.
            The addresses int64 [n] are those of the operands, and then of the results; the sizes are int32 [m].

    Raises:
        Exception: XLA does not accept the handler.
    """

    def __init__(self, name: str, compute: Callable[[Any, Any, Any], None]) -> None:
        self._name = f"birdie_zmq.{name}"
        self._task = _task(compute)
        self._handler = _handler(self._task.address)
        address = ctypes.cast(self._handler.address, ctypes.c_void_p)
        capsule = jax.ffi.pycapsule(address)  # type: ignore[no-untyped-call]
        jax.ffi.register_ffi_target(self._name, capsule, platform="cpu")

    def __call__(
        self, items: int, sizes: Sequence[int], operands: Sequence[jax.Array], *results: tuple[int, ...]
    ) -> list[jax.Array]:
        """Compute the items of a call.

        Args:
            items: The number of items, at least one.
            sizes: What the function gets as its sizes.
            operands: The operands, each in row-major order.
            results: The shapes of the results.

        Returns:
            The results, float32.
        """
        assert 1 + len(operands) + len(results) <= _MAX_BUFFERS
        assert 1 + len(sizes) <= _MAX_SIZES
        shared = (2 * (_ADDRESSES + _MAX_BUFFERS),)  # of 32 bits: JAX has no int64 by default
        shapes = [jax.ShapeDtypeStruct(shared, jnp.uint32)]  # type: ignore[no-untyped-call]
        shapes += [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in results]  # type: ignore[no-untyped-call]
        call = jax.ffi.ffi_call(self._name, shapes)
        return list(call(jnp.array([items, *sizes], jnp.int32), *operands)[1:])


def _task(compute: Callable[[Any, Any, Any], None]) -> Any:
    """Return what each thread does in a call: it computes items until none remain."""

    @numba.cfunc(numba.types.void(numba.types.voidptr))  # type: ignore[untyped-decorator]
    def task(data: Any) -> None:
        shared = numba.carray(data, (_ADDRESSES + _MAX_BUFFERS,), np.int64)
        begin = _address_of(data)
        addresses = shared[_ADDRESSES + 1 :]
        given = integers_at(shared[_ADDRESSES], _MAX_SIZES)  # as many as the call has
        items, sizes = np.int64(given[0]), given[1:]
        item = _fetch_add(begin + 8 * _NEXT_ITEM, 1)
        while item < items:
            compute(item, addresses, sizes)
            item = _fetch_add(begin + 8 * _NEXT_ITEM, 1)
        complete, future = shared[_COMPLETE], shared[_CALL_FUTURE]
        if _fetch_add(begin + 8 * _RUNNING, -1) == 1:
            arguments = np.array([24, 0, future], np.int64)  # XLA_FFI_Future_SetAvailable_Args
            _call(complete, arguments.ctypes.data)  # from here on, XLA may free the memory of the call

    return task


def _handler(task_address: int) -> Any:
    """Return the handler that XLA calls: it starts the tasks of a call."""
    major, minor = _API_VERSION

    @numba.cfunc(numba.types.int64(numba.types.voidptr))  # type: ignore[untyped-decorator]
    def handler(call_frame: Any) -> Any:
        frame = numba.carray(call_frame, (_FUTURE + 1,), np.int64)
        if frame[_EXTENSION] != 0:
            extension = words_at(frame[_EXTENSION], 4)
            if extension[1] & 0xFFFFFFFF == _METADATA_EXTENSION:  # XLA asks for the version and the traits
                metadata = integers_at(extension[_METADATA] + 24, 3)
                metadata[0], metadata[1], metadata[2] = major, minor, 0
                return 0
        operands = words_at(frame[_ARGUMENTS], frame[_ARGUMENTS - 2])
        results = words_at(frame[_RESULTS], frame[_RESULTS - 2])
        begin = words_at(results[0], 6)[_BUFFER_DATA]
        shared = words_at(begin, _ADDRESSES + _MAX_BUFFERS)
        for index in range(len(operands)):
            shared[_ADDRESSES + index] = words_at(operands[index], 6)[_BUFFER_DATA]
        for index in range(1, len(results)):
            shared[_ADDRESSES + len(operands) + index - 1] = words_at(results[index], 6)[_BUFFER_DATA]
        items = np.int64(integers_at(shared[_ADDRESSES], 1)[0])
        api = words_at(frame[_API], _COMPLETE_FUTURE + 1)
        threads = np.ones(1, np.int64)
        arguments = np.array([32, 0, frame[_CONTEXT], threads.ctypes.data, 0], np.int64)
        error = _call(api[_COUNT_THREADS], arguments.ctypes.data)
        if error != 0:
            return error
        arguments[0], arguments[2] = 24, 0
        error = _call(api[_CREATE_FUTURE], arguments.ctypes.data)
        if error != 0:
            return error
        tasks = max(1, min(threads[0], items))
        shared[_RUNNING], shared[_NEXT_ITEM], shared[_COMPLETE] = tasks, 0, api[_COMPLETE_FUTURE]
        shared[_CALL_FUTURE] = frame[_FUTURE] = arguments[2]
        arguments[0], arguments[2], arguments[3], arguments[4] = 40, frame[_CONTEXT], task_address, begin
        for _ in range(tasks):
            error = _call(api[_SCHEDULE], arguments.ctypes.data)
            if error != 0:
                return error
        return 0

    return handler
