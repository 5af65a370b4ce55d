# SPDX-License-Identifier: BSD-3-Clause
"""Who reads a class from a module of scikit-learn: the program, or scikit-learn, or a pickler."""

from __future__ import annotations

import functools
from opcode import opmap
from types import CodeType, FrameType
from typing import Final

__all__ = ["Callers"]

# Packages that mean scikit-learn's own classes when they name them.
_OURS: Final = ("gsb", "gsb_server", "shmpool")

# They look classes up by the name that a class has, to compare or to restore it, or while they import a module.
_BY_NAME: Final = ("pickle", "_pickle", "cloudpickle", "joblib.externals.cloudpickle", "dill", "copyreg", "importlib")

# They read attributes on behalf of the code that called them.
_ON_BEHALF: Final = frozenset({"inspect"})

_READS: Final = frozenset(
    opmap[name]
    for name in ("IMPORT_FROM", "LOAD_ATTR", "LOAD_METHOD", "IMPORT_STAR", "CALL_INTRINSIC_1")
    if name in opmap
)
_LOADS_NAME: Final = {opmap["LOAD_NAME"]: 0, opmap["LOAD_GLOBAL"]: 1}
# Between the name of a function and its call, or parts of either.
_SKIPPED: Final = frozenset(
    opmap[name] for name in ("CACHE", "PRECALL", "PUSH_NULL", "KW_NAMES", "EXTENDED_ARG") if name in opmap
)


class Callers:
    """Decides by the calling frame.

    Parameters
    ----------
    exclude : iterable of str
        Packages and modules that get scikit-learn's own classes, besides scikit-learn and gsb.

    Notes
    -----
    Concurrency: any thread.
    """

    def __init__(self, exclude: tuple[str, ...] = ()) -> None:
        self._kept = (*_OURS, *exclude)
        self._verdicts: dict[str, bool] = {}

    def wants_proxy(self, frame: FrameType, *, defines: bool) -> bool:
        """Tell whether the code of this frame is to get proxies.

        Parameters
        ----------
        frame
            The innermost frame; it reads the attribute, or has called C code that does.
        defines : bool
            Whether the attribute is the one by which the class itself is named in pickles. There, a pickler written
            in C must find scikit-learn's class, and it has no frame: only what is plainly a read gets the proxy.
        """
        name = frame.f_globals.get("__name__")
        if type(name) is str:
            verdict = self._verdicts.get(name)
            if verdict is False:
                return False
            if verdict is None and _is_within(name, _BY_NAME):
                self._verdicts[name] = False
                return False
        if defines and name not in _ON_BEHALF and not _reads(frame):
            return False
        return self._is_program(frame)

    def _is_program(self, frame: FrameType | None) -> bool:
        while frame is not None:
            name = frame.f_globals.get("__name__")
            if type(name) is not str:
                return True
            if name in _ON_BEHALF:
                frame = frame.f_back
                continue
            verdict = self._verdicts.get(name)
            if verdict is None:
                verdict = self._verdicts[name] = self._judge(name)
            return verdict
        return True

    def _judge(self, name: str) -> bool:
        if _is_within(name, ("sklearn",)):
            parts = name.split(".")
            return "tests" in parts or "_test_common" in parts or parts[-1] == "conftest"
        return not _is_within(name, self._kept)


def _is_within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _reads(frame: FrameType) -> bool:
    """Tell whether the current instruction reads an attribute, or is a call of ``getattr``."""
    return _reads_at(frame.f_code, frame.f_lasti)


@functools.lru_cache(maxsize=1024)
def _reads_at(code: CodeType, offset: int) -> bool:
    instructions = code.co_code
    if offset < 0:
        return False
    if instructions[offset] in _READS:
        return True
    # A call: its function was pushed by the last instruction before it that starts at the same place of the source.
    starts = [position[0::2] for position in code.co_positions()]
    here = starts[offset // 2]
    if None in here:  # compiled without positions
        return False
    for index in range(offset // 2 - 1, -1, -1):
        opcode = instructions[2 * index]
        if starts[index] != here or opcode in _SKIPPED:
            continue
        shift = _LOADS_NAME.get(opcode)
        if shift is None:
            return False
        return code.co_names[_argument(instructions, index) >> shift] == "getattr"
    return False


def _argument(instructions: bytes, index: int) -> int:
    argument, factor = instructions[2 * index + 1], 256
    while index > 0 and instructions[2 * index - 2] == opmap["EXTENDED_ARG"]:
        index -= 1
        argument += instructions[2 * index + 1] * factor
        factor *= 256
    return argument
