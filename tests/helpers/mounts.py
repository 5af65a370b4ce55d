# SPDX-License-Identifier: BSD-3-Clause
"""Mounts that serve stale pages: FUSE file systems over a folder, taken down again whatever happens.

`bindfs` maps stale. libfuse's own example `passthrough_ll` with ``cache=always,writeback`` is the worst that a kernel
does: plain reads are stale too, and a plain write arrives with the flush only, over whatever is there by then. That is
how 9P behaves from Linux 6.4 on, and how WSL2 shows Windows' drives.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ["KINDS", "Rig", "build_passthrough", "mounted", "require_fuse"]

KINDS = ("bindfs", "writeback")
PASSTHROUGH_SOURCE = Path("/usr/share/doc/libfuse3-dev/examples/passthrough_ll.c")
DEADLINE = 20.0


class Rig:
    """One folder under two names: `under` is the folder itself, `over` the mount that shows it."""

    def __init__(self, kind: str, under: Path, over: Path) -> None:
        self.kind = kind
        self.under = under
        self.over = over

    def __repr__(self) -> str:
        return f"<{self.kind} of {self.under}>"


def require(*programs: str) -> None:
    """Skip unless these are installed."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"not installed: {program}")


def require_fuse() -> None:
    """Skip unless FUSE file systems can be mounted here."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("not there, or not ours: /dev/fuse")
    require("fusermount3", "setpriv")


def build_passthrough(folder: Path) -> Path:
    """Compile libfuse's example; the program."""
    require("pkg-config", "gcc")
    if not PASSTHROUGH_SOURCE.exists():
        pytest.skip(f"not there: {PASSTHROUGH_SOURCE} (libfuse3-dev, with its documentation)")
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=True)
    program = folder / "passthrough_ll"
    command = ["gcc", "-O2", "-w", "-o", str(program), str(PASSTHROUGH_SOURCE), *flags.stdout.split()]
    subprocess.run(command, check=True, timeout=120)
    return program


@contextlib.contextmanager
def mounted(kind: str, folder: Path, passthrough: Path | None = None) -> Iterator[Rig]:
    """Mount ``folder/under`` on ``folder/over``.

    Parameters
    ----------
    kind : {"bindfs", "writeback"}
        Which of the two file systems.
    folder : Path
        Empty; on the file system that lies below.
    passthrough : Path, optional
        The program of `build_passthrough`, for ``"writeback"``.
    """
    require_fuse()
    rig = Rig(kind, folder / "under", folder / "over")
    rig.under.mkdir(mode=0o700)
    rig.over.mkdir(mode=0o700)
    if kind == "bindfs":
        require("bindfs")
        command = ["bindfs", "-f", str(rig.under), str(rig.over)]
    else:
        assert passthrough is not None
        options = f"source={rig.under},cache=always,writeback,timeout=0"
        command = [str(passthrough), "-f", "-o", options, str(rig.over)]
    # On SIGTERM libfuse unmounts; so nothing stays mounted when this very process is killed.
    daemon = subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        _wait_mounted(rig, daemon)
        yield rig
    finally:
        _take_down(rig, daemon)


def _is_mounted(path: Path) -> bool:
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    return any(line.split()[4] == str(path) for line in lines)


def _wait_mounted(rig: Rig, daemon: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not _is_mounted(rig.over):
        if daemon.poll() is not None:
            assert daemon.stdout is not None
            pytest.skip(f"{rig.kind} cannot mount here: {daemon.stdout.read().strip()[-300:]}")
        assert time.monotonic() < deadline, f"{rig.kind} has not mounted within {DEADLINE:g} s"
        time.sleep(0.01)


def _take_down(rig: Rig, daemon: subprocess.Popen[str]) -> None:
    busy = ""
    if _is_mounted(rig.over):
        done = subprocess.run(["fusermount3", "-u", str(rig.over)], capture_output=True, text=True, timeout=DEADLINE)
        if done.returncode != 0 and _is_mounted(rig.over):
            busy = done.stderr.strip()
            subprocess.run(["fusermount3", "-uz", str(rig.over)], check=False, timeout=DEADLINE)
    try:
        daemon.wait(2.0 if busy else DEADLINE)
    except subprocess.TimeoutExpired:
        # Files of a lazily unmounted file system that are still open keep it alive.
        with contextlib.suppress(ProcessLookupError):
            daemon.send_signal(signal.SIGKILL)
        daemon.wait(DEADLINE)
    assert daemon.stdout is not None
    daemon.stdout.close()
    assert not busy, f"the test left files open on {rig}: {busy}"
    assert not _is_mounted(rig.over)
