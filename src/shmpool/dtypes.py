# SPDX-License-Identifier: BSD-3-Clause
"""dtype to text and back: how a slot's descriptor names the type of its elements.

A plain dtype is its array-protocol string (``<f4``). A structured one is JSON with names, formats, offsets and
item size, so that padding, alignment, overlapping fields and titles survive. Text from a pool file is
untrusted: it is parsed, never evaluated.
"""

from __future__ import annotations

import json
import re
from typing import Any, cast

import numpy as np

from .errors import PoolCorruptedError, UnsupportedDtypeError

_ARRAY_PROTOCOL = re.compile(r"[<>|][A-Za-z]\d*(\[\d*[A-Za-z]+\])?")


def _encode(dtype: np.dtype[Any]) -> Any:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"base": _encode(base), "shape": list(shape)}
    if dtype.names is None:
        return dtype.str
    fields: dict[str, Any] = dict(dtype.fields or {})
    encoded: dict[str, Any] = {
        "names": list(dtype.names),
        "formats": [_encode(fields[name][0]) for name in dtype.names],
        "offsets": [fields[name][1] for name in dtype.names],
        "itemsize": dtype.itemsize,
    }
    titles = [fields[name][2] if len(fields[name]) > 2 else None for name in dtype.names]
    if any(title is not None for title in titles):
        encoded["titles"] = titles
    if dtype.isalignedstruct:
        encoded["aligned"] = True
    return encoded


def _decode(spec: Any) -> np.dtype[Any]:
    if isinstance(spec, str):
        # NumPy knows many more names than `dtype.str` ever gives, and warns about some.
        if not _ARRAY_PROTOCOL.fullmatch(spec):
            raise ValueError(f"{spec[:40]!r} is not an array-protocol type string")
        return np.dtype(spec)
    if "base" in spec:
        return np.dtype((_decode(spec["base"]), tuple(int(n) for n in spec["shape"])))
    fields = {key: spec[key] for key in ("names", "offsets", "itemsize", "titles") if key in spec}
    fields["formats"] = [_decode(item) for item in spec["formats"]]
    if spec.get("aligned", False):
        return cast("np.dtype[Any]", np.dtype(fields, align=True))  # type: ignore[call-overload]  # NumPy's stubs lack dict
    return cast("np.dtype[Any]", np.dtype(fields))  # type: ignore[call-overload]


def dtype_to_text(dtype: np.dtype[Any]) -> bytes:
    """Describe a dtype as ASCII text.

    Raises
    ------
    UnsupportedDtypeError
        Elements are references (object, variable-width string) or of a type that NumPy itself does not know.
    """
    if dtype.hasobject:
        raise UnsupportedDtypeError(
            f"dtype {dtype} holds references, which mean nothing in another process.",
            hint="convert to a fixed-size dtype, for example astype('U') or astype(float)",
            dtype=str(dtype),
        )
    if dtype.isbuiltin == 2 or (dtype.names is None and dtype.subdtype is None and np.dtype(dtype.str) != dtype):
        raise UnsupportedDtypeError(
            f"dtype {dtype} is an extension type that its text form {dtype.str!r} does not name.",
            hint="put a view of the bits, for example array.view('u2'), and view them back after get()",
            dtype=str(dtype),
        )
    encoded = _encode(dtype)
    text = encoded if isinstance(encoded, str) else json.dumps(encoded, separators=(",", ":"))
    return text.encode("ascii")


def text_to_dtype(text: bytes) -> np.dtype[Any]:
    """Parse what :func:`dtype_to_text` wrote.

    Raises
    ------
    PoolCorruptedError
        The text is not one that a writer could have written.
    """
    try:
        decoded = text.decode("ascii")
        dtype = _decode(json.loads(decoded) if decoded.startswith("{") else decoded)
    except (ValueError, TypeError, KeyError, SyntaxError, AttributeError, RecursionError, OverflowError) as error:
        raise PoolCorruptedError(f"the slot's dtype text {text[:80]!r} is not a dtype ({error}).") from None
    if dtype.hasobject:
        raise PoolCorruptedError(f"the slot's dtype text {text[:80]!r} names an object dtype.")
    return dtype
