# SPDX-License-Identifier: BSD-3-Clause
"""``make test-9p``: the client in a virtual machine, the server outside of it, a drive between them by 9P.

That is how WSL2 shows Windows' drives (``trans=virtio`` or ``fd``, ``cache=mmap``). Real kernels and a real 9P client;
QEMU's server stands for Windows'. The guest runs this very Python off the host's files. Emulated (``-accel tcg``), so
its times say nothing about any real machine. Ends with 1 if a byte was wrong or a mapping was trusted.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gsb.cli.server_process import ServerProcess
from kernels import KEYRING, RELEASES, Kernel, archive, fetch

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
NEEDED = ("qemu-system-x86_64", "busybox", "dpkg", "apt-get")


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
    return port


def boot(kernel: Kernel, place: Path, job: dict[str, Any], cache: str, seconds: float) -> list[dict[str, Any]]:
    """Run the guest to its end; what it has said."""
    command = f"{sys.executable} -B {HERE.parent / 'guest.py'} '{json.dumps(job)}'"
    script = f"CACHE={cache}\nDRIVE={job['drive']}\nCOMMAND='/bin/sh {place / 'command.sh'}'\n"
    packages = ":".join(str(ROOT / name) for name in ("src", "python"))
    (place / "command.sh").write_text(f"exec env PYTHONPATH={packages} {command}\n")
    ramdisk = place / "ramdisk.cpio"
    extra = archive({"job": (stat.S_IFREG | 0o644, script.encode(), (0, 0))})
    ramdisk.write_bytes(kernel.ramdisk.read_bytes() + extra)
    said = place / "said"
    qemu = [
        *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "1024", "-nographic", "-no-reboot"),
        *("-kernel", str(kernel.image), "-initrd", str(ramdisk), "-append", "console=ttyS0 panic=-1 quiet"),
        *("-display", "none", "-monitor", "none", "-serial", f"file:{place / 'console'}", "-serial", f"file:{said}"),
        *("-nic", "user,model=virtio-net-pci"),
        *("-fsdev", "local,id=f0,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=f0,mount_tag=root"),
        *("-fsdev", f"local,id=f1,path={job['drive']},security_model=none"),
        *("-device", "virtio-9p-pci,fsdev=f1,mount_tag=drive"),
    ]
    with (place / "qemu.log").open("wb") as log:
        running = subprocess.Popen(qemu, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            running.wait(seconds)
        except subprocess.TimeoutExpired:
            print(f"the guest has not ended within {seconds:.0f} s")
        finally:
            running.kill()
            running.wait(10)
    text = said.read_text(errors="replace") if said.exists() else ""
    lines = [line for line in text.splitlines() if line.strip()]
    found = [json.loads(line) for line in lines if line.startswith("{") and line.rstrip().endswith("}")]
    if not any("done" in one for one in found):
        print("\n".join(line for line in lines if not line.startswith("{"))[-3000:])
        print((place / "console").read_text(errors="replace")[-1500:])
        print((place / "qemu.log").read_text(errors="replace")[-500:])
    return found


def judge(found: list[dict[str, Any]]) -> list[str]:
    """What is wrong with it."""
    faults = [] if any("done" in one for one in found) else ["the guest did not come to its end"]
    for one in found:
        if one.get("wrong"):
            faults.append(f"{one['wrong']} of {one['rounds']} wrong: {one}")
        if "error" in one:
            faults.append(f"an error: {one['error']}")
        if "choice" in one and one["transport"] == "shared":
            faults.append(f"the mapping was trusted ({one['choice']})")
        if one.get("asked_for_shared", 0) != one.get("refused", 0):
            faults.append(f"the mapping was trusted in {one['asked_for_shared'] - one['refused']} of {one}")
        if "file" in one and one["file"]["kind"] != "file":
            faults.append(f"the file was given up: {one['file']['how']}")
        if "direct_read" in one and one["direct_read"] != one["server_wrote"]:
            faults.append("a direct read was stale")
    return faults


def run(kernel: Kernel, cache: str, rounds: int, seconds: float) -> list[str]:
    """One boot with a server beside it; the faults."""
    place = Path(tempfile.mkdtemp(prefix="gsb-9p-", dir=os.environ.get("GSB_9P_DIR")))
    try:
        (place / "drive").mkdir()
        port, data_port, token = free_port(), free_port(), secrets.token_hex(16)
        environment = {
            "GSB_RUNTIME_DIR": str(place),
            "GSB_TOKEN": token,
            "GSB_FILE_DIR": str(place / "drive"),
            "GSB_FILE_NBYTES": "16M",
            "GSB_DATA_PORT": str(data_port),
        }
        arguments = ["--host", "127.0.0.1", "--port", str(port), "--pool", str(place / "drive" / "pool.bin")]
        with (place / "server.log").open("wb") as log:
            server = ServerProcess([*arguments, "--slot-size", "4M", "--workers", "1"], environment, output=log)
            server.start()
            try:
                job = {
                    "url": f"http://127.0.0.1:{port}",
                    "ports": [port, data_port],
                    "token": token,
                    "drive": str(place / "drive"),
                    "rounds": rounds,
                }
                begun = time.monotonic()
                found = boot(kernel, place, job, cache, seconds)
            finally:
                server.stop()
        print(f"\nLinux {kernel.version}, cache={cache}, {time.monotonic() - begun:.0f} s")
        for one in found:
            print(f"  {json.dumps(one)}")
        faults = judge(found)
        print("  " + ("; ".join(faults) or "nothing wrong"), flush=True)
        return faults
    finally:
        shutil.rmtree(place)


def main() -> int:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", type=Path, default=ROOT / "build" / "qemu", help="where they are kept")
    parser.add_argument("--releases", nargs="+", choices=RELEASES, default=list(RELEASES))
    parser.add_argument("--cache", nargs="+", default=["mmap"], help="9P cache modes")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=270.0, help="that one boot may take")
    arguments = parser.parse_args()
    missing = [name for name in NEEDED if shutil.which(name) is None]
    missing += [] if Path(KEYRING).exists() else [KEYRING]
    if missing:
        print(f"not installed: {', '.join(missing)}")
        return 2
    faults = []
    for release in arguments.releases:
        kernel = fetch(release, arguments.kernels)
        for cache in arguments.cache:
            faults += run(kernel, cache, arguments.rounds, arguments.seconds)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
