"""BLAS and LAPACK routines by their pointers: on parts of larger matrices in place, and while other Python threads run.

scipy's ordinary wrappers copy what is not contiguous, and hold the interpreter's lock. What is called here are the routines
that scipy offers to Cython, `scipy.linalg.cython_blas` and `cython_lapack`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import scipy.linalg.cython_blas
import scipy.linalg.cython_lapack
import torch
from torch import Tensor

LETTERS = {torch.float32: "s", torch.float64: "d"}


def call(name: str, *arguments: str | int | float | Tensor) -> int:
    """Call a routine of the type of its tensors.

    Args:
        name: Without the letter of the type: "gemm", "syrk", "trsm", "potrf".
        *arguments: Letters, sizes and factors by value; matrices as tensors, each of which is followed by its leading dimension
            (`leading`). A tensor in rows is a matrix in columns, seen as its transpose.

    Returns:
        LAPACK's info, 0 for success; 0 for BLAS.
    """
    dtype = next(a.dtype for a in arguments if isinstance(a, Tensor))
    real = ctypes.c_float if dtype == torch.float32 else ctypes.c_double
    info = ctypes.c_int(0)
    held: list[Any] = []
    for a in arguments:
        match a:
            case Tensor():
                assert a.dtype == dtype and not a.is_cuda  # our own slip
                held.append(ctypes.c_void_p(a.data_ptr()))
            case str():
                held.append(ctypes.pointer(ctypes.c_char(a.encode())))
            case int():
                held.append(ctypes.pointer(ctypes.c_int(a)))
            case float():
                held.append(ctypes.pointer(real(a)))
    lapack = name == "potrf"
    _routine(LETTERS[dtype] + name, lapack)(*held, *([ctypes.pointer(info)] if lapack else []))
    return info.value


def leading(A: Tensor) -> int:
    """Leading dimension of a matrix whose rows are contiguous.

    Args:
        A: The matrix, perhaps a part of a larger one.

    Returns:
        Numbers from one row to the next.
    """
    assert A.ndim == 2 and (A.stride(1) == 1 or A.shape[1] == 1)  # our own slip
    return max(1, A.stride(0) if len(A) > 1 else A.shape[1])


@cache
def _routine(name: str, lapack: bool) -> Callable[..., None]:
    module: Any = scipy.linalg.cython_lapack if lapack else scipy.linalg.cython_blas
    capsule = module.__pyx_capi__[name]
    name_of, pointer_of = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    signature = name_of(capsule)
    count = signature.count(b"*")
    assert b"int *" in signature and signature.startswith(b"void (")  # sizes are C ints, and nothing is returned
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * count)(pointer_of(capsule, signature))
