# SPDX-License-Identifier: BSD-3-Clause
"""Compile the C tests and run them plain, under AddressSanitizer + UBSan, and under ThreadSanitizer.

Each program prints ``N passed, N failed`` last and exits non-zero on a failure; a sanitizer's report does the same.
The headers must also compile without a warning on their own, as C11, as C++17 and for Windows.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CORE = HERE.parents[1] / "src" / "shmpool" / "core"
STRICT = ("-Wall", "-Wextra", "-Werror")
BUILD_SECONDS = 120.0
RUN_SECONDS = 200.0

# -O1 under sanitizers: checks stay where they were written, and reports have lines.
WAYS: dict[str, tuple[str, ...]] = {
    "plain": ("-O2",),
    "asan": ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "tsan": ("-O1", "-g", "-fsanitize=thread"),
}

# Operations per thread: enough for dozens of deaths in every run.
STRESS = {"plain": 100_000, "asan": 30_000, "tsan": 20_000}
# HYPOTHESIS_PROFILE=soak makes everything that is random go on for longer, here too.
SEEDS = range(1, 101 if os.environ.get("HYPOTHESIS_PROFILE") == "soak" else 2)

# Not plain C, and compiled elsewhere: copy.h starts threads, failpoint_impl.h kills its process.
NOT_ALONE = ("copy.h", "failpoint_impl.h")
HEADERS = ("atomic.h", "bridge.h", "channel.h", "failpoint.h", "hash.h", "layout.h", "slots.h")


def compiler(*names: str) -> str:
    """The first of these that is installed, else skip."""
    for name in names:
        if name and (path := shutil.which(name)):
            return path
    pytest.skip(f"not installed: {' or '.join(name for name in names if name)}")


def run(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run(
        command,
        timeout=seconds,
        check=False,
        text=True,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def build(source: Path, folder: Path, flags: tuple[str, ...]) -> str:
    program = str(folder / source.stem)
    cc = compiler(os.environ.get("CC", ""), "gcc", "cc", "clang")
    done = run([cc, "-std=c11", "-pthread", *STRICT, *flags, str(source), "-o", program], BUILD_SECONDS)
    if done.returncode != 0 and re.search(r"cannot find .*(asan|ubsan|tsan)", done.stdout):
        pytest.skip(f"not installed: the run-time library of {' '.join(flags)}")
    assert done.returncode == 0, done.stdout
    return program


def execute(program: str, *args: str) -> str:
    """Run a test program; its output. Fails the test on any failure it reports."""
    done = run([program, *args], RUN_SECONDS)
    if "unexpected memory mapping" in done.stdout and shutil.which("setarch"):
        # ThreadSanitizer cannot place its shadow memory under much address randomisation.
        done = run(["setarch", "-R", program, *args], RUN_SECONDS)
    assert done.returncode == 0, done.stdout
    last = done.stdout.strip().splitlines()[-1]
    counts = re.fullmatch(r"(\d+) passed, (\d+) failed", last)
    assert counts is not None, done.stdout
    assert int(counts[1]) > 0, done.stdout
    assert int(counts[2]) == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("source", sorted(path.name for path in HERE.glob("test_*.c")))
def test_invariants(source: str, way: str, tmp_path: Path) -> None:
    execute(build(HERE / source, tmp_path, WAYS[way]))


@pytest.mark.parametrize("way", WAYS)
def test_stress(way: str, tmp_path: Path) -> None:
    program = build(HERE / "stress_core.c", tmp_path, WAYS[way])
    for seed in SEEDS:
        execute(program, str(STRESS[way]), str(4 if seed % 2 else 3), str(seed))


def test_every_header_was_thought_of() -> None:
    assert {path.name for path in CORE.glob("*.h")} == {*HEADERS, *NOT_ALONE}


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize(
    ("language", "compilers"),
    [
        ("c11", (os.environ.get("CC", ""), "gcc", "cc", "clang")),
        ("c++17", (os.environ.get("CXX", ""), "g++", "c++", "clang++")),
        ("windows", ("x86_64-w64-mingw32-gcc",)),
    ],
)
def test_header_alone(header: str, language: str, compilers: tuple[str, ...], tmp_path: Path) -> None:
    """Included alone, twice, with failpoints and without: no warning, no missing include."""
    source = tmp_path / ("alone.cpp" if language == "c++17" else "alone.c")
    source.write_text(f'#include "{header}"\n#include "{header}"\nint main(void) {{ return 0; }}\n')
    standard = "c11" if language == "windows" else language
    for define in ("-USHMPOOL_FAILPOINTS", "-DSHMPOOL_FAILPOINTS"):
        command = [compiler(*compilers), f"-std={standard}", *STRICT, define, f"-I{CORE}", "-c", str(source)]
        done = run([*command, "-o", str(tmp_path / "alone.o")], BUILD_SECONDS)
        assert done.returncode == 0, done.stdout


def test_core_bench_runs(tmp_path: Path) -> None:
    """The figure is for people; that the benchmark still does whole cycles is checked here."""
    program = build(HERE.parents[1] / "bench" / "c" / "bench_core.c", tmp_path, ("-O2",))
    done = run([program, "1000"], RUN_SECONDS)
    assert done.returncode == 0, done.stdout
    assert len(re.findall(r"span \d, clients' high water +\d+: +\d+\.\d ns", done.stdout)) == 8, done.stdout
