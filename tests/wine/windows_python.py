# SPDX-License-Identifier: BSD-3-Clause
"""A real CPython for Windows under wine, with `shmpool` cross-built for it, from PyPI and Debian packages alone.

Everything lies in ``build/wine`` and is made once per version of what goes into it:

* ``python3xx.dll`` and its modules come from the wheel of panda3d, which carries python.org's; the standard library and
  the headers are those of the running Python, which must be of the same minor version;
* NumPy and the test tools are ordinary Windows wheels;
* the extension modules are the C files of the normal build, compiled by mingw.

Traps: Python under wine needs a stdin that is not closed and a stdout that is no regular file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["ROOT", "WindowsPython", "missing", "to_windows"]

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "src" / "shmpool"
BASE = ROOT / "build" / "wine"
WINE = "/usr/lib/wine/wine64"
WINESERVER = "/usr/lib/wine/wineserver64"
GCC = "x86_64-w64-mingw32-gcc"
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
TAG = f"{sys.version_info.major}{sys.version_info.minor}"

# Under wine 8 NumPy from 2.2 on needs complex functions that its C library does not have.
REQUIREMENTS = (
    "numpy==2.1.3",
    "pytest>=9",
    "pytest-timeout>=2.3",
    "pytest-benchmark>=5",
    "hypothesis>=6.100",
    "rich>=13",
    "colorama",
)
PANDA3D = "panda3d==1.10.16"

# What python.org's PC/pyconfig.h says that matters for extension modules; the rest of the headers is the same
# everywhere.
PYCONFIG = """\
#ifndef Py_CONFIG_H
#define Py_CONFIG_H
#include <io.h>
#include <stdio.h>
#include <basetsd.h>
#define MS_WIN64
#define MS_WIN32
#define MS_WINDOWS
#define NT_THREADS
#define WITH_THREAD
#define PLATFORM "win32"
#define Py_ENABLE_SHARED 1
#define MS_COREDLL 1
#define HAVE_DECLSPEC_DLL
#ifndef Py_BUILD_CORE
#define USE_DL_IMPORT
#endif
#define SIZEOF_SHORT 2
#define SIZEOF_INT 4
#define SIZEOF_LONG 4
#define SIZEOF_LONG_LONG 8
#define SIZEOF_FLOAT 4
#define SIZEOF_DOUBLE 8
#define SIZEOF_VOID_P 8
#define SIZEOF_SIZE_T 8
#define SIZEOF_TIME_T 8
#define SIZEOF_OFF_T 4
#define SIZEOF_FPOS_T 8
#define SIZEOF_HKEY 8
#define SIZEOF_WCHAR_T 2
#define SIZEOF__BOOL 1
#define SIZEOF_PID_T 8
#define ALIGNOF_SIZE_T 8
#define ALIGNOF_MAX_ALIGN_T 16
#define HAVE_LONG_LONG 1
#define HAVE_STDARG_PROTOTYPES
#define HAVE_STDDEF_H 1
#define HAVE_STDINT_H 1
#define HAVE_INTTYPES_H 1
#define HAVE_ERRNO_H 1
#define HAVE_FCNTL_H 1
#define HAVE_SIGNAL_H 1
#define HAVE_SYS_TYPES_H 1
#define HAVE_SYS_STAT_H 1
#define HAVE_WCHAR_H 1
#define HAVE_LIMITS_H 1
#define HAVE_STDLIB_H 1
#define HAVE_STRING_H 1
#define STDC_HEADERS 1
#define HAVE_STRFTIME 1
#define HAVE_CLOCK 1
#define HAVE_DYNAMIC_LOADING
#define WITH_DOC_STRINGS 1
#define WITH_PYMALLOC 1
#define WITH_DECIMAL_CONTEXTVAR 1
#define HAVE_BUILTIN_ATOMIC 1
#endif
"""
LAUNCHER = """\
#include <wchar.h>
__declspec(dllimport) int Py_Main(int, wchar_t **);
int wmain(int n, wchar_t **arguments) { return Py_Main(n, arguments); }
"""
# Not needed, and large or not importable there.
LEFT_OUT = {"__pycache__", "site-packages", "dist-packages", "lib-dynload", "test", "idlelib", "tkinter", "turtledemo"}


def missing() -> str | None:
    """What keeps us from running Windows programs here, if anything."""
    if not Path(WINE).exists():
        return "there is no wine64 here (apt-get install wine64)"
    if shutil.which(GCC) is None:
        return "there is no mingw here (apt-get install gcc-mingw-w64-x86-64)"
    if sys.version_info[:2] > (3, 13):
        return f"no NumPy for Python {VERSION} runs under wine 8"
    return None


def to_windows(path: Path | str) -> str:
    """How a wine process names a file of this machine."""
    return "Z:" + str(path).replace("/", "\\")


def _run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=600,
        umask=0o077,  # the wine server makes the files of all wine processes, and adds rights for the group
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\nended with {done.returncode}:\n{done.stdout}")


def _stamp(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:12]


def _download(folder: Path, *arguments: str) -> None:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    windows = ("--platform", "win_amd64", "--python-version", VERSION, "--implementation", "cp", "--only-binary=:all:")
    _run(*pip, arguments[0], "-q", *windows, *arguments[1:], cwd=folder)


def _make_home(home: Path) -> None:
    """Python itself: launcher, DLLs, standard library, packages, headers."""
    wheels, packages, dlls = home / "wheels", home / "Lib" / "site-packages", home / "DLLs"
    for folder in (wheels, dlls):
        folder.mkdir(parents=True)
    library = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(library, home / "Lib", ignore=lambda _, names: [name for name in names if name in LEFT_OUT])
    packages.mkdir()
    _download(wheels, "download", PANDA3D, "--no-deps", "-d", ".")
    with zipfile.ZipFile(next(wheels.glob("panda3d-*.whl"))) as wheel:
        for entry in wheel.infolist():
            name = Path(entry.filename).name
            if entry.filename.startswith("deploy_libs/") and not name.lower().startswith(
                ("api-ms", "tcl", "tk", "_tk")
            ):
                beside = name.lower().startswith(("python", "vcruntime"))
                ((home if beside else dlls) / name).write_bytes(wheel.read(entry))
    shutil.rmtree(wheels)
    _download(home, "install", "--target", str(packages), *REQUIREMENTS)
    shutil.copytree(sysconfig.get_path("include"), home / "include")
    (home / "include" / "pyconfig.h").write_text(PYCONFIG)
    (home / "launcher.c").write_text(LAUNCHER)
    _run(GCC, "-O1", "-municode", "-o", "python.exe", "launcher.c", f"python{TAG}.dll", cwd=home)


def _build(target: Path, home: Path, *, failpoints: bool) -> None:
    """The package with its extension modules."""
    package = target / "shmpool"
    shutil.copytree(SOURCES, package, ignore=shutil.ignore_patterns("*.so", "*.pyd", "*.pyx", "*.h", "__pycache__"))
    define = ["-DPy_LIMITED_API=0x030B0000", "-DNPY_NO_DEPRECATED_API=NPY_2_0_API_VERSION"]
    define += ["-DNPY_TARGET_VERSION=NPY_2_0_API_VERSION", *(["-DSHMPOOL_FAILPOINTS=1"] if failpoints else [])]
    numpy = home / "Lib" / "site-packages" / "numpy" / "_core" / "include"
    common = ["-std=gnu11", "-O1" if failpoints else "-O2", "-shared", "-static-libgcc", "-Wall", "-Wextra"]
    # Cython's own output is not warning-free
    common += ["-Wno-unused-parameter", "-Wno-missing-field-initializers", "-Wno-unused-function"]
    common += ["-Wno-unused-const-variable", "-Wno-cast-function-type", "-Wno-type-limits", "-Werror"]

    def compile_one(name: str) -> None:
        _run(
            GCC,
            *common,
            *define,
            *(f"-I{folder}" for folder in (SOURCES, home / "include", numpy)),
            "-o",
            package / f"{name}.pyd",
            ROOT / "build" / "cython" / "src" / "shmpool" / f"{name}.c",
            home / f"python{TAG}.dll",
            "-ladvapi32",
        )

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, ("_core", "_channel")))


class WindowsPython:
    """The interpreter, and its builds of `shmpool`. Making it takes a minute once, then nothing."""

    def __init__(self) -> None:
        BASE.mkdir(parents=True, exist_ok=True)
        self.home = BASE / f"python-{VERSION}-{_stamp(PANDA3D, *REQUIREMENTS, PYCONFIG, LAUNCHER)}"
        self._once(self.home, _make_home)
        _run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=ROOT)
        files = sorted(path for path in SOURCES.rglob("*") if path.suffix in {".h", ".pyx", ".py"})
        stamp = _stamp(self.home, *(path.read_bytes() for path in files))
        for old in BASE.glob("build-*"):
            if not old.name.endswith(stamp):
                shutil.rmtree(old)
        self.library = BASE / f"build-{stamp}"
        self.failpoints = BASE / f"build-failpoints-{stamp}"
        self._once(self.library, lambda target: _build(target, self.home, failpoints=False))
        self._once(self.failpoints, lambda target: _build(target, self.home, failpoints=True))
        self.prefix = BASE / "prefix"
        if not (self.prefix / "ready").exists():
            for arguments in (("wineboot", "-i"), ("winecfg", "-v", "win10")):
                _run(WINE, *arguments, env=self.environment())
            (self.prefix / "ready").touch()

    @staticmethod
    def _once(target: Path, make: Callable[[Path], None]) -> None:
        if not target.is_dir():
            making = target.with_name(target.name + ".making")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            make(making)
            making.rename(target)

    def environment(self) -> dict[str, str]:
        """What a wine process needs in its environment."""
        return {
            "WINEPREFIX": str(self.prefix),
            "WINEARCH": "win64",
            "WINEDEBUG": "-all",
            "WINEDLLOVERRIDES": "mscoree,mshtml,winemenubuilder.exe=",
            "DISPLAY": "",
            "PYTHONPATH": to_windows(self.library),
            "PYTHONPYCACHEPREFIX": to_windows(BASE / "pycache"),
            "PYTHONUTF8": "1",
            "SHMPOOL_TEST_FAILPOINTS": to_windows(self.failpoints),
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
        }

    def command(self, arguments: Sequence[str]) -> list[str]:
        """A command that runs Python with these arguments."""
        return [WINE, str(self.home / "python.exe"), *arguments]

    def close(self) -> None:
        """End the wine server of our prefix, and with it whatever still runs there."""
        _run(WINESERVER, "-k", "-w", env=self.environment())
