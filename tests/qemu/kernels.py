# SPDX-License-Identifier: BSD-3-Clause
"""Debian kernels, unpacked and not installed, and initial ram disks that can mount 9P and do nothing else."""

from __future__ import annotations

import lzma
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

__all__ = ["KEYRING", "RELEASES", "Kernel", "archive", "fetch"]

#: Debian release -> version of its kernel. The cloud kernels have no 9P.
RELEASES = {"bookworm": "6.1", "trixie": "6.12"}
MIRROR = "http://deb.debian.org/debian"
SOURCES = Path("/etc/apt")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MODULES = ("virtio_pci", "virtio_net", "9pnet_virtio", "9p")

INIT = """\
#!/bin/busybox sh
B=/bin/busybox
$B mount -t devtmpfs dev /dev
$B mount -t proc proc /proc
for module in $($B cat /modules/order); do $B insmod /modules/$module.ko; done
. /job
$B ip link set lo up
$B ip addr add 10.0.2.15/24 dev eth0
$B ip link set eth0 up
# The host's own files, so that its Python runs here; the drive in question lies where it lies on the host.
$B mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,ro,cache=loose root /host
$B mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=$CACHE drive /host$DRIVE
$B mount -t proc proc /host/proc
$B mount -t devtmpfs dev /host/dev
$B chroot /host $COMMAND >/dev/ttyS1 2>&1
echo "{\\"ended\\": $?}" >/dev/ttyS1
$B sync
$B poweroff -f
"""


class Kernel:
    """An unpacked kernel and its initial ram disk."""

    def __init__(self, version: str, image: Path, ramdisk: Path) -> None:
        self.version = version
        self.image = image
        self.ramdisk = ramdisk


def fetch(release: str, folder: Path) -> Kernel:
    """Download the kernel of a Debian release and make its ram disk; what is there already is kept."""
    place = folder / release
    unpacked = place / "unpacked"
    if not (place / "ramdisk.cpio").exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        package = _download(release, place)
        subprocess.run(["dpkg", "-x", str(package), str(unpacked)], check=True, timeout=120)
        package.unlink()
        (place / "ramdisk.cpio").write_bytes(archive(dict(_ramdisk(unpacked))))
    image = next((unpacked / "boot").glob("vmlinuz-*"))
    return Kernel(RELEASES[release], image, place / "ramdisk.cpio")


def _mirror() -> str:
    """The mirror of Debian that this machine uses already, if it uses one."""
    for path in sorted((*SOURCES.glob("sources.list"), *SOURCES.glob("sources.list.d/*"))):
        found = re.search(r"^(?:deb|URIs:) +(?:\[[^]]*\] +)?(\S+/debian)/?(?: |$)", path.read_text(), re.MULTILINE)
        if found is not None:
            return found[1]
    return MIRROR


def _download(release: str, place: Path) -> Path:
    """Ask apt, with lists of its own, so that nothing of this machine's changes."""
    for name in ("lists/partial", "cache/archives/partial"):
        (place / name).mkdir(parents=True)
    (place / "sources.list").write_text(f"deb [signed-by={KEYRING}] {_mirror()} {release} main\n")
    options = {
        "Dir::Etc::sourcelist": place / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": place / "lists",
        "Dir::Cache": place / "cache",
        "Dir::State::status": "/dev/null",
    }
    flags = [f"-o{name}={value}" for name, value in options.items()]

    def apt(*command: str) -> str:
        done = subprocess.run([*command, *flags], cwd=place, check=True, capture_output=True, text=True, timeout=300)
        return done.stdout

    apt("apt-get", "-q", "update")
    found = re.search(r"Depends: (linux-image-\S+)", apt("apt-cache", "depends", "linux-image-amd64"))
    assert found is not None
    apt("apt-get", "-q", "download", found[1])
    return next(place.glob("linux-image-*.deb"))


def _ramdisk(unpacked: Path) -> Iterator[tuple[str, tuple[int, bytes, tuple[int, int]]]]:
    for folder in ("bin", "dev", "proc", "host", "modules"):
        yield folder, (stat.S_IFDIR | 0o755, b"", (0, 0))
    yield "dev/console", (stat.S_IFCHR | 0o600, b"", (5, 1))
    busybox = shutil.which("busybox")
    assert busybox is not None
    yield "bin/busybox", (stat.S_IFREG | 0o755, Path(busybox).read_bytes(), (0, 0))
    yield "init", (stat.S_IFREG | 0o755, INIT.encode(), (0, 0))
    order: list[str] = []
    for name, content in _modules(unpacked):
        order.append(name)
        yield f"modules/{name}.ko", (stat.S_IFREG | 0o644, content, (0, 0))
    yield "modules/order", (stat.S_IFREG | 0o644, "\n".join(order).encode(), (0, 0))


def _modules(unpacked: Path) -> Iterator[tuple[str, bytes]]:
    """The modules that 9P needs, each after those that it needs itself."""
    files = {path.name.partition(".ko")[0].replace("-", "_"): path for path in unpacked.rglob("*.ko*")}
    given: set[str] = set()

    def load(name: str) -> Iterator[tuple[str, bytes]]:
        # What has no file is part of the kernel.
        if name in given or name not in files:
            return
        given.add(name)
        content = files[name].read_bytes()
        if files[name].suffix == ".xz":
            content = lzma.decompress(content)
        needs = re.search(rb"\0depends=([^\0]*)", content)
        for other in needs[1].decode().split(",") if needs else ():
            yield from load(other.replace("-", "_"))
        yield name, content

    for name in MODULES:
        yield from load(name)


def archive(entries: dict[str, tuple[int, bytes, tuple[int, int]]]) -> bytes:
    """A cpio archive as the kernel wants it; several may follow one another.

    Parameters
    ----------
    entries : dict
        Name -> mode, content, and major and minor number of a device.
    """
    found = bytearray()
    for inode, (name, (mode, content, device)) in enumerate([*entries.items(), ("TRAILER!!!", (0, b"", (0, 0)))]):
        encoded = name.encode() + b"\0"
        fields = (inode + 1, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0)
        found += b"070701" + "".join(f"{field:08x}" for field in fields).encode() + encoded
        found += bytes(-len(found) % 4)
        found += content
        found += bytes(-len(found) % 4)
    return bytes(found)
