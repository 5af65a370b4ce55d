# SPDX-License-Identifier: BSD-3-Clause
# Texts of dtypes and back, remembered: included by each extension module, which so has a cache of its own and no call
# through Python.

from .dtypes import dtype_to_text, text_to_dtype

cdef dict TEXT_OF_DTYPE = {}
cdef dict DTYPE_OF_TEXT = {}
cdef Py_ssize_t CACHE_LIMIT = 1024


cdef inline cnp.dtype descr_of(cnp.ndarray array):
    return <cnp.dtype><object><PyObject *>cnp.PyArray_DESCR(array)


cdef bytes text_of(cnp.dtype dtype):
    text = TEXT_OF_DTYPE.get(dtype)
    if text is None:
        text = dtype_to_text(dtype)
        if dtype.metadata is None and len(TEXT_OF_DTYPE) < CACHE_LIMIT:
            TEXT_OF_DTYPE[dtype] = text
    return text


cdef cnp.dtype dtype_of(bytes text):
    dtype = DTYPE_OF_TEXT.get(text)
    if dtype is None:
        dtype = text_to_dtype(text)
        if len(DTYPE_OF_TEXT) < CACHE_LIMIT:
            DTYPE_OF_TEXT[text] = dtype
    return dtype
