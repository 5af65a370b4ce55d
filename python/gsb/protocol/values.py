# SPDX-License-Identifier: BSD-3-Clause
"""Python values as JSON values, and back: the tagged objects of ``docs/http-api.md``.

Plain JSON stays plain JSON; everything else is an object with the key ``"$"``. Big arrays go to the
``write_array`` hook and come from the ``read_array`` hook, so this module knows no pool. Nothing here
runs code from the other side: a decoded value is built from a fixed set of types, and from scikit-learn's
own estimators, kernels and splitters by calling their constructors.
"""

from __future__ import annotations

import base64
import binascii
import inspect
import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from gsb.errors import ProtocolError, UnsupportedEstimatorError, UnsupportedValueError
from gsb.protocol.estimators import refused_param
from gsb.protocol.wire import ARRAY_TAGS, INLINE_LIMIT

#: dtype kinds that are plain bytes: no pointers, no code.
DTYPE_KINDS: Final = frozenset("biufcSUmM")

MAX_DEPTH: Final = 16
MAX_ITEMS: Final = 1_000_000
_SPARSE_PARTS: Final = {
    "csr": ("data", "indices", "indptr"),
    "csc": ("data", "indices", "indptr"),
    "bsr": ("data", "indices", "indptr"),
    "coo": ("data", "row", "col"),
    "dia": ("data", "offsets"),
}
_PLAIN: Final = frozenset({str, bool, int})
_BUILTIN_TYPES: Final = {kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, object)}
# Other sparse formats have no flat buffers; their conversion is exact.
_SPARSE_CONVERTED: Final = frozenset({"lil", "dok"})

Array = np.ndarray[Any, np.dtype[Any]]
WriteArray = Callable[[Array], dict[str, Any]]
ReadArray = Callable[[dict[str, Any]], Array]


def encode_value(value: object, write_array: WriteArray, depth: int = 0) -> Any:
    """Encode a value for the wire.

    Parameters
    ----------
    value : object
        None, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, range, slice, NumPy
        scalar, array or dtype, SciPy sparse matrix, ``numpy.random.RandomState``, or an estimator, kernel or
        splitter of scikit-learn that is not fitted; nested up to 16 deep.
    write_array : callable
        Stores an array of `INLINE_LIMIT` bytes or more and returns ``{"$": "slot", ...}``.

    Raises
    ------
    UnsupportedValueError
        The value is of another type; the message says where.
    """
    kind = type(value)
    if kind is np.ndarray:
        return encode_array(value, write_array, depth)  # type: ignore[arg-type]
    if value is None or kind is bool or kind is int or kind is str:
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$": "float", "v": repr(value)}  # type: ignore[arg-type]
    if depth > MAX_DEPTH:
        raise UnsupportedValueError(f"a value is nested more than {MAX_DEPTH} deep")
    if kind is list:
        return [encode_value(item, write_array, depth + 1) for item in value]  # type: ignore[attr-defined]
    if kind is tuple:
        return {"$": "tuple", "items": [encode_value(item, write_array, depth + 1) for item in value]}  # type: ignore[attr-defined]
    if kind is dict:
        return _encode_dict(value, write_array, depth)  # type: ignore[arg-type]
    if isinstance(value, np.generic):
        return _encode_scalar(value)
    if kind is slice:
        parts = [encode_value(part, write_array, depth + 1) for part in (value.start, value.stop, value.step)]  # type: ignore[attr-defined]
        return {"$": "slice", "items": parts}
    if isinstance(value, np.random.RandomState):
        return _encode_random_state(value, write_array)
    if kind is set or kind is frozenset or kind is range:
        # Sorted by text: equal sets make equal messages.
        items = sorted(value, key=repr) if kind is not range else [value.start, value.stop, value.step]  # type: ignore[attr-defined, call-overload]
        return {"$": kind.__name__, "items": [encode_value(item, write_array, depth + 1) for item in items]}
    if kind is bytes:
        return {"$": "bytes", "data": base64.b64encode(value).decode("ascii")}  # type: ignore[arg-type]
    if kind is complex:
        return {"$": "complex", "v": repr(value)}
    if isinstance(value, np.dtype):
        return _encode_dtype(value)
    if isinstance(value, type):
        return _encode_type(value)
    module = kind.__module__
    if module.startswith("scipy.sparse") and hasattr(value, "format"):
        return _encode_sparse(value, write_array)
    if module.startswith(("sklearn.", "gsb.")):
        return _encode_object(value, write_array, depth)
    raise UnsupportedValueError(f"a value of type {module}.{kind.__qualname__} cannot travel to the server")


def decode_value(wire: object, read_array: ReadArray, depth: int = 0) -> Any:
    """Decode a value from the wire.

    Parameters
    ----------
    wire : object
        A JSON value as made by `encode_value`.
    read_array : callable
        Gives the array of an object with a tag of `ARRAY_TAGS`; checks it.

    Raises
    ------
    ProtocolError
        The value is malformed.
    """
    kind = type(wire)
    if wire is None or kind is bool or kind is int or kind is float or kind is str:
        return wire
    if depth > MAX_DEPTH:
        raise ProtocolError(f"a value is nested more than {MAX_DEPTH} deep")
    if kind is list:
        return [decode_value(item, read_array, depth + 1) for item in wire]  # type: ignore[attr-defined]
    if kind is not dict:
        raise ProtocolError(f"a value of type {kind.__name__} is no JSON value")
    tag = wire.get("$")  # type: ignore[attr-defined]
    if tag is None:
        return {key: decode_value(item, read_array, depth + 1) for key, item in wire.items()}  # type: ignore[attr-defined]
    if tag == "array":
        return decode_inline(wire)  # type: ignore[arg-type]
    if type(tag) is str and tag in ARRAY_TAGS:
        return read_array(wire)  # type: ignore[arg-type]
    decode = _DECODERS.get(tag) if isinstance(tag, str) else None
    if decode is None:
        raise ProtocolError(f"unknown tag {tag!r}")
    try:
        return decode(wire, read_array, depth)  # type: ignore[arg-type]
    except ProtocolError:
        raise
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        OverflowError,
        UnsupportedEstimatorError,
    ) as error:
        raise ProtocolError(f"malformed value tagged {tag!r}: {error}") from error


# --------------------------------------------------------------------------------------- arrays
def encode_array(array: Array, write_array: WriteArray, depth: int = 0) -> Any:
    """Encode an array: inline below `INLINE_LIMIT` bytes, by the hook otherwise."""
    dtype = array.dtype
    if dtype.kind == "O":
        return _encode_objects(array, write_array, depth)
    if dtype.kind not in DTYPE_KINDS or dtype.hasobject:
        raise UnsupportedValueError(f"an array of dtype {dtype} cannot travel to the server")
    if array.nbytes < INLINE_LIMIT:
        return encode_inline(array)
    return write_array(array)


def encode_inline(array: Array) -> dict[str, Any]:
    """Encode an array as base64, Fortran order kept."""
    if array.flags.c_contiguous or not array.flags.f_contiguous:
        text = base64.b64encode(array.tobytes()).decode("ascii")
        return {"$": "array", "dtype": array.dtype.str, "shape": list(array.shape), "data": text}
    text = base64.b64encode(array.tobytes("F")).decode("ascii")
    return {"$": "array", "dtype": array.dtype.str, "shape": list(array.shape), "order": "F", "data": text}


def decode_inline(wire: dict[str, Any]) -> Array:
    """Decode an array sent as base64: private, writable, checked."""
    try:
        dtype = decode_dtype(wire["dtype"])
        shape = wire["shape"]
        # bytearray makes the array writable without a second copy
        data = bytearray(binascii.a2b_base64(wire["data"], strict_mode=True))
        if type(shape) is not list or any(type(n) is not int or n < 0 for n in shape):
            raise ProtocolError(f"malformed shape {shape!r}")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ProtocolError(f"{len(data)} bytes are no array of shape {shape} and dtype {dtype}")
        if not data:
            return np.empty(shape, dtype)
        order = wire.get("order", "C")
        if order not in ("C", "F"):
            raise ProtocolError(f"malformed order {order!r}")
        return np.frombuffer(data, dtype).reshape(shape, order=order)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, ProtocolError):
            raise
        raise ProtocolError(f"malformed inline array: {error}") from error


def decode_dtype(text: object) -> np.dtype[Any]:
    """Decode a dtype text; only plain bytes, never objects or structures."""
    if not isinstance(text, str) or len(text) > 32 or text[:1] not in "<>|=" or text[1:2] not in DTYPE_KINDS:
        raise ProtocolError(f"malformed dtype {text!r}")
    try:
        dtype = np.dtype(text)
    except TypeError as error:
        raise ProtocolError(f"malformed dtype {text!r}") from error
    if dtype.kind not in DTYPE_KINDS:
        raise ProtocolError(f"dtype {dtype} may not travel")
    return dtype


def _encode_objects(array: Array, write_array: WriteArray, depth: int) -> dict[str, Any]:
    items = array.ravel().tolist()
    wire = [
        item if item is None or type(item) in _PLAIN else encode_value(item, write_array, depth + 1) for item in items
    ]
    return {"$": "objects", "shape": list(array.shape), "items": wire}


def _decode_objects(wire: dict[str, Any], read_array: ReadArray, depth: int) -> Any:
    items, shape = wire["items"], wire["shape"]
    if type(items) is not list or len(items) > MAX_ITEMS * 10 or math.prod(shape) != len(items):
        raise ProtocolError("malformed object array")
    array = np.empty(len(items), dtype=object)
    for position, item in enumerate(items):
        array[position] = item if type(item) in _PLAIN else decode_value(item, read_array, depth + 1)
    return array.reshape(shape)


# --------------------------------------------------------------------------------------- the rest
def _encode_dict(value: dict[Any, Any], write_array: WriteArray, depth: int) -> Any:
    if all(type(key) is str and key != "$" for key in value):
        return {key: encode_value(item, write_array, depth + 1) for key, item in value.items()}
    items = [
        [encode_value(key, write_array, depth + 1), encode_value(item, write_array, depth + 1)]
        for key, item in value.items()
    ]
    return {"$": "dict", "items": items}


def _decode_dict(wire: dict[str, Any], read_array: ReadArray, depth: int) -> Any:
    return {
        decode_value(key, read_array, depth + 1): decode_value(item, read_array, depth + 1)
        for key, item in wire["items"]
    }


def _decode_tuple(wire: dict[str, Any], read_array: ReadArray, depth: int) -> Any:
    return tuple(decode_value(item, read_array, depth + 1) for item in wire["items"])


def _decode_slice(wire: dict[str, Any], read_array: ReadArray, depth: int) -> Any:
    start, stop, step = (decode_value(item, read_array, depth + 1) for item in wire["items"])
    return slice(start, stop, step)


def _decode_float(wire: dict[str, Any], read_array: ReadArray, depth: int) -> Any:
    if wire["v"] not in ("nan", "inf", "-inf"):
        raise ProtocolError(f"malformed float {wire['v']!r}")
    return float(wire["v"])


def _encode_scalar(value: np.generic) -> dict[str, Any]:
    if value.dtype.kind not in DTYPE_KINDS:
        raise UnsupportedValueError(f"a NumPy scalar of dtype {value.dtype} cannot travel to the server")
    return {
        "$": "scalar",
        "dtype": value.dtype.str,
        "data": base64.b64encode(value.tobytes()).decode("ascii"),
    }


def _decode_scalar(wire: dict[str, Any], read_array: ReadArray, depth: int) -> Any:
    return decode_inline({"dtype": wire["dtype"], "shape": [], "data": wire["data"]})[()]


def _encode_random_state(value: np.random.RandomState, write_array: WriteArray) -> dict[str, Any]:
    state: Any = value.get_state(legacy=True)
    if state[0] != "MT19937":
        raise UnsupportedValueError(f"a RandomState over {state[0]} cannot travel to the server")
    return {
        "$": "random_state",
        "key": encode_inline(np.asarray(state[1])),
        "pos": int(state[2]),
        "has_gauss": int(state[3]),
        "gauss": float(state[4]),
    }


def _decode_random_state(wire: dict[str, Any], read_array: ReadArray, depth: int) -> Any:
    generator = np.random.RandomState()
    generator.set_state(random_state_tuple(wire))
    return generator


def random_state_tuple(wire: dict[str, Any]) -> tuple[str, Array, int, int, float]:
    """Decode an object tagged ``random_state`` into what ``RandomState.set_state`` takes."""
    key = decode_inline(wire["key"])
    position = wire["pos"]
    if key.shape != (624,) or key.dtype != np.uint32 or type(position) is not int or not 0 <= position <= 624:
        raise ProtocolError("malformed random state")
    return "MT19937", key, position, int(wire["has_gauss"]), float(wire["gauss"])


def _encode_sparse(value: Any, write_array: WriteArray) -> dict[str, Any]:
    if value.format in _SPARSE_CONVERTED:
        value = value.tocsr()
    names = _SPARSE_PARTS.get(value.format)
    if names is None:
        raise UnsupportedValueError(f"a sparse matrix of format {value.format} cannot travel to the server")
    return {
        "$": "sparse",
        "format": value.format,
        "shape": list(value.shape),
        "new": type(value).__name__.endswith("_array"),
        "parts": {name: encode_array(np.asarray(getattr(value, name)), write_array) for name in names},
    }


def _decode_sparse(wire: dict[str, Any], read_array: ReadArray, depth: int) -> Any:
    from scipy import sparse

    kind, shape = wire["format"], tuple(int(n) for n in wire["shape"])
    names = _SPARSE_PARTS[kind]
    parts = [decode_value(wire["parts"][name], read_array, depth + 1) for name in names]
    if any(not isinstance(part, np.ndarray) or part.dtype.kind not in "biufc" for part in parts):
        raise ProtocolError("malformed parts of a sparse matrix")
    make = getattr(sparse, f"{kind}_{'array' if wire.get('new') else 'matrix'}")
    content: Any = (parts[0], (parts[1], parts[2])) if kind == "coo" else tuple(parts)
    matrix = make(content, shape=shape)
    if hasattr(matrix, "check_format"):
        # SciPy's loops trust the indices: they must be checked in full on what came from outside.
        matrix.check_format(full_check=True)
    for name, part in zip(names[1:], parts[1:], strict=True):
        # SciPy narrows indices where it can, also in the check; scikit-learn refuses some widths, so they must stay
        # what they were.
        if getattr(matrix, name).dtype != part.dtype:
            setattr(matrix, name, part)
    return matrix


def _decode_set(wire: dict[str, Any], read_array: ReadArray, depth: int) -> Any:
    make = set if wire["$"] == "set" else frozenset
    return make(decode_value(item, read_array, depth + 1) for item in wire["items"])


def _decode_range(wire: dict[str, Any], read_array: ReadArray, depth: int) -> Any:
    start, stop, step = wire["items"]
    return range(start, stop, step)


def _decode_bytes(wire: dict[str, Any], read_array: ReadArray, depth: int) -> Any:
    return binascii.a2b_base64(wire["data"], strict_mode=True)


def _decode_complex(wire: dict[str, Any], read_array: ReadArray, depth: int) -> Any:
    return complex(wire["v"])


def _encode_dtype(value: np.dtype[Any]) -> dict[str, Any]:
    if value.kind not in DTYPE_KINDS and value != np.dtype(object):
        raise UnsupportedValueError(f"the dtype {value} cannot travel to the server")
    return {"$": "dtype", "v": value.str}


def _decode_dtype_tag(wire: dict[str, Any], read_array: ReadArray, depth: int) -> Any:
    return np.dtype(object) if wire["v"] == "|O" else decode_dtype(wire["v"])


def _encode_type(value: type) -> dict[str, Any]:
    if _BUILTIN_TYPES.get(value.__name__) is value:
        return {"$": "type", "v": value.__name__}
    if issubclass(value, np.generic) and getattr(np, value.__name__, None) is value:
        return {"$": "type", "v": f"numpy.{value.__name__}"}
    raise UnsupportedValueError(f"the class {value.__module__}.{value.__qualname__} cannot travel to the server")


def _decode_type(wire: dict[str, Any], read_array: ReadArray, depth: int) -> Any:
    package, _, name = wire["v"].rpartition(".")
    found = _BUILTIN_TYPES.get(name) if not package else getattr(np, name, None)
    if package not in ("", "numpy") or not isinstance(found, type) or (package and not issubclass(found, np.generic)):
        raise ProtocolError(f"unknown type {wire['v']!r}")
    return found


def _encode_object(value: object, write_array: WriteArray, depth: int) -> dict[str, Any]:
    """Encode an estimator, kernel or splitter by its public path and its constructor's parameters."""
    from gsb.protocol.registry import parameter_path

    kind: Any = getattr(type(value), "_gsb_base", type(value))
    path = parameter_path(kind)
    if path is None:
        raise UnsupportedValueError(
            f"a value of type {kind.__module__}.{kind.__qualname__} cannot travel to the server"
        )
    names = [name for name in inspect.signature(kind).parameters if name not in ("args", "kwargs")]
    state = vars(value)
    params = {}
    for name in names:
        if name not in state:
            raise UnsupportedValueError(f"a {kind.__name__} cannot travel: it does not keep its parameter {name}")
        if isinstance(state[name], np.random.RandomState):
            # Its stream would go on in the copy only.
            raise UnsupportedValueError(f"a {kind.__name__} with a random state of its own cannot travel")
        if (reason := refused_param(name, state[name])) is not None:
            raise UnsupportedValueError(reason)
        params[name] = encode_value(state[name], write_array, depth + 1)
    if len(state) > len(names):
        raise UnsupportedValueError(f"a {kind.__name__} that is fitted or has settings of its own cannot travel")
    return {"$": "sklearn", "path": path, "params": params}


def _decode_object(wire: dict[str, Any], read_array: ReadArray, depth: int) -> Any:
    from gsb.protocol.registry import resolve

    kind = resolve(wire["path"])
    params = {str(name): decode_value(item, read_array, depth + 1) for name, item in wire["params"].items()}
    for name, value in params.items():
        if (reason := refused_param(name, value)) is not None:
            raise ProtocolError(reason)
    return kind(**params)


_DECODERS: Final[dict[str, Callable[[dict[str, Any], ReadArray, int], Any]]] = {
    "dict": _decode_dict,
    "tuple": _decode_tuple,
    "set": _decode_set,
    "frozenset": _decode_set,
    "range": _decode_range,
    "bytes": _decode_bytes,
    "complex": _decode_complex,
    "dtype": _decode_dtype_tag,
    "type": _decode_type,
    "sklearn": _decode_object,
    "slice": _decode_slice,
    "float": _decode_float,
    "scalar": _decode_scalar,
    "objects": _decode_objects,
    "random_state": _decode_random_state,
    "sparse": _decode_sparse,
}
