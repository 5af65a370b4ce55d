# SPDX-License-Identifier: BSD-3-Clause
"""The format page against the C structures, and against the bytes of a real pool file."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.pools import SLOT, small

import shmpool
from shmpool import _channel, _core

ROOT = Path(__file__).parents[2]
CORE = ROOT / "src" / "shmpool" / "core"
PAGE = (ROOT / "docs" / "format.md").read_text()

# heading of the page -> C structure
STRUCTURES = {
    "Static header": "shmpool_header_t",
    "Counters page": "shmpool_counters_t",
    "Slot record": "shmpool_slot_t",
    "Client entry": "shmpool_client_t",
    "Channel record": "shmpool_channel_t",
    "Channel extent": "shmpool_cell_t",
}
# fields whose place in the structure is not their name
C_NAMES = {
    ("shmpool_counters_t", "input"): "rotation[0].value",
    ("shmpool_counters_t", "output"): "rotation[1].value",
    ("shmpool_counters_t", "scratch"): "rotation[2].value",
    ("shmpool_header_t", "input_slots"): "region_slots[0]",
    ("shmpool_header_t", "output_slots"): "region_slots[1]",
    ("shmpool_header_t", "scratch_slots"): "region_slots[2]",
}
# where on the page offsets count from the start of the file instead of the structure
BASES = {"shmpool_counters_t": 4096}


def section(heading: str) -> str:
    found = re.search(rf"^### {heading}.*?\n(.*?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/format.md has no section {heading!r}"
    return found[1]


def nbytes_of(kind: str) -> int:
    """Bytes of a type as the page writes it: u32, i64[64], 280 bytes."""
    if found := re.fullmatch(r"(\d+) bytes", kind):
        return int(found[1])
    found = re.fullmatch(r"[ui](\d+)(?:\[(\d+)\])?", kind)
    assert found is not None, kind
    return int(found[1]) // 8 * int(found[2] or 1)


def documented() -> dict[tuple[str, str], tuple[int, int]]:
    """(structure, field) -> (offset in the structure, size) from the tables of the page."""
    fields = {}
    for heading, name in STRUCTURES.items():
        rows = re.findall(r"^\| (\d+) \| ([^|]+?) \| `(\w+)`", section(heading), re.MULTILINE)
        assert rows, heading
        for offset, kind, field in rows:
            fields[name, field] = (int(offset) - BASES.get(name, 0), nbytes_of(kind))
    return fields


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int]]:
    """What the compiler made of the fields that the page names, and the structures' sizes."""
    cc = shutil.which(os.environ.get("CC", "gcc")) or shutil.which("cc")
    if cc is None:
        pytest.skip("not installed: a C compiler")
    folder = tmp_path_factory.mktemp("offsets")
    lines = [
        f'printf("{name}.{field} %zu %zu\\n", offsetof({name}, {C_NAMES.get((name, field), field)}),'
        f" sizeof((({name} *)0)->{C_NAMES.get((name, field), field)}));"
        for name, field in documented()
    ]
    lines += [f'printf("{name} 0 %zu\\n", sizeof({name}));' for name in STRUCTURES.values()]
    source = folder / "offsets.c"
    source.write_text(
        f'#include <stdio.h>\n#include "{CORE}/layout.h"\nint main(void) {{{"".join(lines)} return 0; }}\n'
    )
    program = folder / "offsets"
    subprocess.run([cc, "-std=c11", str(source), "-o", str(program)], check=True, timeout=60)
    printed = subprocess.run([str(program)], check=True, timeout=60, capture_output=True, text=True).stdout
    return {line.split()[0]: (int(line.split()[1]), int(line.split()[2])) for line in printed.splitlines()}


def test_offsets_are_those_of_the_page(compiled: dict[str, tuple[int, int]]) -> None:
    expected = {f"{name}.{field}": place for (name, field), place in documented().items()}
    assert len(expected) > 40
    assert {name: place for name, place in compiled.items() if "." in name} == expected


def test_sizes_are_those_of_the_page(compiled: dict[str, tuple[int, int]]) -> None:
    assert compiled["shmpool_header_t"][1] == compiled["shmpool_counters_t"][1] == 4096
    for heading in ("Slot record", "Client entry", "Channel record"):
        found = re.search(rf"^### {heading} \((\d+) bytes\)", PAGE, re.MULTILINE)
        assert found is not None
        assert compiled[STRUCTURES[heading]][1] == int(found[1])
    assert re.search(r"^\| slot table \| 8192 \| `n_slots` x 1024 \|", PAGE, re.MULTILINE)
    assert re.search(r"^\| channel table \| `channel_table_offset` \| `max_channels` x 2048 \|", PAGE, re.MULTILINE)
    cells, payloads = (int(n) for n in re.findall(r"^\| (\d{5,}) \|", section("Channel extent"), re.MULTILINE))
    assert (cells, payloads) == (256 * 64, 256 * 64 + 4096 * compiled["shmpool_cell_t"][1])
    assert payloads == _channel.PAYLOAD_OFFSET
    assert re.search(r"^\| client table \| `client_table_offset` \| `max_clients` x 256 \|", PAGE, re.MULTILINE)


def test_states_are_those_of_the_page() -> None:
    rows = re.findall(r"^\| (\d) \| ([A-Z]+) \|", section("The slot word"), re.MULTILINE)
    assert tuple(name.lower() for _, name in rows) == _core.STATES
    assert [int(number) for number, _ in rows] == list(range(len(rows)))


def test_page_names_this_format() -> None:
    assert PAGE.startswith(f"# The pool file, format {_core.FORMAT_VERSION}\n")
    assert f"| 8 | u32 | `format_version` | {_core.FORMAT_VERSION} |" in PAGE


def test_layout_stamp_follows_the_structures(compiled: dict[str, tuple[int, int]]) -> None:
    """The stamp is the FNV-1a hash of sizes and offsets, so that another build gets another one."""

    def fnv(value: int, numbers: list[int]) -> int:
        for number in numbers:
            for byte in number.to_bytes(8, "little"):
                value = (value ^ byte) * 16777619 % 2**32
        return value

    sizes = [compiled[name][1] for name in list(STRUCTURES.values())[:4]]
    slot = [compiled[f"shmpool_slot_t.{field}"][0] for field in ("link_generation", "sealed_ns", "shape", "dtype")]
    label = compiled["shmpool_client_t.label"][0]
    witness = _core.WITNESS_LANES * 2 * _core.WITNESS_STRIDE
    pointer = ctypes.sizeof(ctypes.c_void_p)
    channel = [
        compiled["shmpool_channel_t"][1],
        compiled["shmpool_channel_t.tail"][0],
        compiled["shmpool_channel_t.attach_high_water"][0],
        compiled["shmpool_cell_t"][1],
        compiled["shmpool_cell_t.data_nbytes"][0],
        _channel.PAYLOAD_OFFSET,
    ]
    numbers = [*sizes, *slot, label, *channel, 64, _core.STATES.index("tail"), witness, pointer]
    assert _core.layout_stamp() == fnv(2166136261, numbers)
    assert _core.layout_stamp() != fnv(2166136261, [*sizes[:-1], 512, *numbers[4:]])


def test_bytes_of_a_new_pool(pool_path: Path) -> None:
    """A reader in another language, by the page alone."""
    with small(pool_path) as pool:
        raw = pool_path.read_bytes()
        fields = documented()

        def field(name: str, base: int = 0, of: str = "shmpool_header_t") -> int:
            offset, size = fields[of, name]
            return int.from_bytes(raw[base + offset : base + offset + size], "little")

        assert raw[:8] == b"SHMPOOL\0"
        assert field("layout_stamp") == _core.layout_stamp()
        assert field("init_state") == 2
        assert field("header_crc") == zlib.crc32(raw[24:128])
        assert raw[24:40].hex() == pool.uuid
        geometry = pool.geometry
        assert (field("slot_nbytes"), field("max_clients")) == (SLOT, geometry.max_clients)
        assert (field("input_slots"), field("output_slots"), field("scratch_slots")) == (4, 2, 2)
        n = geometry.n_slots
        client_table, pin_table, pin_stride = (
            field("client_table_offset"),
            field("pin_table_offset"),
            field("pin_stride"),
        )
        assert client_table == 8192 + n * 1024
        assert pin_table == client_table + geometry.max_clients * 256
        assert pin_stride == -(-geometry.max_clients * 4 // 64) * 64
        channel_table = field("channel_table_offset")
        assert channel_table == pin_table + n * pin_stride
        assert (field("max_channels"), field("channel_kib")) == (32, 4096)
        extents = -(-(channel_table + 32 * 2048) // 4096) * 4096
        assert geometry.channels_offset == extents
        assert field("slots_offset") == extents + 32 * 4096 * 1024
        witness = -(-(field("slots_offset") + n * SLOT) // _core.WITNESS_STRIDE) * _core.WITNESS_STRIDE
        assert field("file_nbytes") == witness + _core.WITNESS_LANES * 2 * _core.WITNESS_STRIDE == len(raw)
        assert field("epoch") == pool.epoch
        assert not any(raw[136:4096])
        assert field("nonce", client_table, "shmpool_client_t") == pool.client.nonce
        assert field("pid", client_table, "shmpool_client_t") == os.getpid()
        assert field("client_high_water", 4096, "shmpool_counters_t") == 1


def test_bytes_of_a_sealed_slot(pool_path: Path) -> None:
    array = np.asfortranarray(np.arange(12, dtype="<f4").reshape(3, 4))
    with small(pool_path) as pool:
        pool.put(array)
        handle = pool.put(array)
        view = pool.get(handle)
        raw = pool_path.read_bytes()
        fields = documented()
        record = 8192 + handle.slot * 1024

        def field(name: str) -> int:
            offset, size = fields["shmpool_slot_t", name]
            return int.from_bytes(raw[record + offset : record + offset + size], "little")

        word = field("word")
        assert (word >> 16, word >> 4 & 0xFFF, word & 0xF) == (handle.generation, pool.client.index + 1, 2)
        assert (field("nbytes"), field("data_offset"), field("span"), field("ndim")) == (48, 0, 1, 2)
        assert (field("order"), field("dtype_offset"), field("dtype_nbytes")) == (1, 0, 3)
        offset, _ = fields["shmpool_slot_t", "dtype"]
        assert raw[record + offset : record + offset + 3] == b"<f4"
        offset, _ = fields["shmpool_slot_t", "shape"]
        assert struct.unpack_from("<2q", raw, record + offset) == (3, 4)
        data = pool.geometry.slots_offset + handle.slot * SLOT
        assert raw[data : data + 48] == array.tobytes(order="F")
        pin_table = 8192 + pool.geometry.n_slots * 1024 + pool.geometry.max_clients * 256
        stride = -(-pool.geometry.max_clients * 4 // 64) * 64
        assert struct.unpack_from("<I", raw, pin_table + handle.slot * stride + 4 * pool.client.index) == (1,)
        del view


def test_header_verdicts() -> None:
    geometry = shmpool.Geometry(SLOT, 4, 2, 2, 16)
    uuid = bytes(range(16))
    page = _core.header_ready(geometry, uuid, 12345)
    assert len(page) == _core.PAGE_NBYTES
    verdict, found, found_uuid, version, stamp = _core.header_check(page, geometry.file_nbytes)
    assert (verdict, found, found_uuid) == ("ok", geometry, uuid)
    assert (version, stamp) == (_core.FORMAT_VERSION, _core.layout_stamp())
    assert _core.header_check(_core.header_creating(), 4096)[0] == "creating"
    assert _core.header_check(page, geometry.file_nbytes - 1)[0] == "truncated"
    assert _core.header_check(b"", 0)[0] == "magic"
    assert _core.header_check(page[:100], geometry.file_nbytes)[0] == "corrupt"
    for at, expected in (
        (0, "magic"),
        (8, "version"),
        (12, "layout"),
        (16, "corrupt"),
        (20, "corrupt"),
        (60, "corrupt"),
    ):
        broken = bytearray(page)
        broken[at] ^= 0x40
        assert _core.header_check(bytes(broken), geometry.file_nbytes)[0] == expected
