# SPDX-License-Identifier: BSD-3-Clause
"""Runs a script, a module, a command or a prompt as Python itself would.

``__main__`` is a module of the program's own, which stays in place until the interpreter ends: pickles,
multiprocessing and ``python -i`` look for it there. Tracebacks begin with the program's first line.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import importlib.machinery
import importlib.util
import io
import os
import pkgutil
import signal
import sys
from types import CodeType, ModuleType, TracebackType
from typing import Any, NoReturn

from gsb.errors import GSBError

__all__ = ["ProgramError", "run_command", "run_module", "run_prompt", "run_script", "run_stdin"]


class ProgramError(GSBError, ValueError):
    """The program to run cannot be found or read."""


def run_script(path: str, arguments: list[str]) -> None:
    """Run a file, or a directory or archive with a ``__main__`` in it.

    Raises
    ------
    ProgramError
        There is no such file.
    """
    sys.argv[:] = [path, *arguments]
    path = os.path.abspath(path)
    importer = pkgutil.get_importer(path)
    if importer is not None:
        _set_path(path, always=True)
        spec = importer.find_spec("__main__")
        if spec is None:
            raise ProgramError(f"can't find '__main__' module in {path!r}")
        _execute(_code_of(spec), spec, spec.origin)
        return
    _set_path(os.path.dirname(os.path.realpath(path)))
    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as error:
        raise ProgramError(f"can't open file {path!r}: [Errno {error.errno}] {error.strerror}") from None
    loader: Any
    if path.endswith(".pyc"):
        loader = importlib.machinery.SourcelessFileLoader("__main__", path)
        code = loader.get_code("__main__")
    else:
        loader = importlib.machinery.SourceFileLoader("__main__", path)
        code = _compiled(source, path)
    _execute(code, None, path, loader)


def run_module(name: str, arguments: list[str]) -> None:
    """Run a module or package as ``python -m`` does.

    Raises
    ------
    ProgramError
        There is no such module, or it has no code.
    """
    sys.argv[:] = ["-m", *arguments]
    spec = _find_module(name)
    if spec.submodule_search_locations is not None:
        spec = _find_module(f"{name}.__main__")
    code = _code_of(spec)
    sys.argv[0] = str(spec.origin)
    _execute(code, spec, spec.origin)


def run_command(command: str, arguments: list[str]) -> None:
    """Run source text as ``python -c`` does."""
    sys.argv[:] = ["-c", *arguments]
    _set_path("")
    _execute(_compiled(command, "<string>"), None, None, importlib.machinery.BuiltinImporter)


def run_stdin(arguments: list[str]) -> None:
    """Run what standard input holds."""
    sys.argv[:] = ["-", *arguments]
    _set_path("")
    _execute(_compiled(sys.stdin.buffer.read(), "<stdin>"), None, "<stdin>", importlib.machinery.BuiltinImporter)


def run_prompt() -> None:
    """Give a prompt."""
    import code

    sys.argv[:] = [""]
    _set_path("")
    try:
        import readline  # noqa: F401 - line editing for input()
        import rlcompleter  # noqa: F401
    except ImportError:
        pass
    main = _make_main(None, None, importlib.machinery.BuiltinImporter)
    code.interact(banner=f"Python {sys.version} on {sys.platform}; accelerated by gsb", local=vars(main), exitmsg="")


# ---------------------------------------------------------------------------------- parts
def _set_path(first: str, *, always: bool = False) -> None:
    """Put in front of ``sys.path`` what Python puts there; ``python -m`` has put the working directory."""
    if not sys.flags.safe_path:
        sys.path[0] = first
    elif always:
        sys.path.insert(0, first)


def _find_module(name: str) -> importlib.machinery.ModuleSpec:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ProgramError(f"Error while finding module specification for {name!r} ({error})") from None
    if spec is None:
        raise ProgramError(f"No module named {name}")
    return spec


def _code_of(spec: importlib.machinery.ModuleSpec) -> CodeType:
    get_code = getattr(spec.loader, "get_code", None)
    code = get_code(spec.name) if get_code is not None else None
    if code is None:
        raise ProgramError(f"No code object available for {spec.name}")
    assert isinstance(code, CodeType)
    return code


def _compiled(source: Any, name: str) -> CodeType:
    try:
        code = compile(source, name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        _die(error, None)
    assert isinstance(code, CodeType)
    return code


def _make_main(spec: importlib.machinery.ModuleSpec | None, file: str | None, loader: Any) -> ModuleType:
    main = ModuleType("__main__")
    main.__builtins__ = builtins  # type: ignore[attr-defined]
    main.__spec__ = spec
    main.__loader__ = loader
    if spec is not None:
        main.__package__ = spec.parent
    if file is not None:
        main.__file__ = file
        main.__cached__ = spec.cached if spec is not None else None  # type: ignore[attr-defined]
    sys.modules["__main__"] = main
    return main


def _execute(code: CodeType, spec: importlib.machinery.ModuleSpec | None, file: str | None, loader: Any = None) -> None:
    main = _make_main(spec, file, spec.loader if spec is not None else loader)
    try:
        exec(code, vars(main))
    except SystemExit:
        raise
    except BaseException as error:
        trace = error.__traceback__
        _die(error, trace.tb_next if trace is not None else None)


def _die(error: BaseException, trace: TracebackType | None) -> NoReturn:
    """Report an exception as the interpreter does, without our frames, and let the interpreter end by it."""
    try:
        sys.excepthook(type(error), error.with_traceback(trace), trace)
    finally:
        # It is raised on, for the exit status.
        sys.excepthook = _say_nothing
    if isinstance(error, KeyboardInterrupt):
        global _interrupted
        _interrupted = True
    raise error


_interrupted = False


def _end_by_signal() -> None:
    """End by SIGINT, as Python does after a KeyboardInterrupt: the shell then knows."""
    if _interrupted:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


# Registered before anything else of the program, so that it comes last.
atexit.register(_end_by_signal)


def _say_nothing(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    pass
