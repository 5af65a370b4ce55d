# SPDX-License-Identifier: BSD-3-Clause
"""Slots pinned, refused, half pinned; the ring; what CUDA's errors mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gsb_server.backends.base import RefusedByBackend
from gsb_server.gpu.device import DeviceLostError, Verdict, classify, describe_sticky

SLOT = 1 << 20
X = np.random.default_rng(3).standard_normal((100_000, 3))  # 2.4 MB: three slots


def _round_trip(bench: Any) -> list[tuple[int, int, bool]]:
    """Send an array there and back and return what was copied how."""
    bench.run("copies")
    for array in (X, np.asfortranarray(X[:40_000]), X[:1000].copy()):
        handle = bench.put(array)
        found = bench.run_on("echo", handle)
        assert np.array_equal(found, array)
        assert found.flags.f_contiguous == array.flags.f_contiguous
        bench.client.free(handle)
    return [tuple(copy) for copy in bench.run("copies")]


def test_pinned_slots_are_read_and_written_in_one_piece(make_bench: Any) -> None:
    bench = make_bench()
    assert [copy for copy in _round_trip(bench) if copy[1] == X.nbytes] == [(1, X.nbytes, True), (2, X.nbytes, True)]


def test_input_and_output_are_one_range(make_bench: Any) -> None:
    """An array that lies in both is in one registration, also for a library that uploads by itself."""
    bench = make_bench()
    large = np.arange((6 << 20) // 8 - 100, dtype=np.float64)
    handle = bench.client.put(large)
    bench.run("copies")
    assert np.array_equal(bench.run_on("echo", handle)[:5], large[:5])
    direct = [copy for copy in bench.run("copies") if copy[0] == 1 and copy[1] > SLOT]
    if handle.slot + 6 <= 8:
        assert direct == [(1, large.nbytes, True)]
    bench.client.free(handle)


@pytest.mark.parametrize("status", [1, 2, 304, 801, 999])
def test_where_pinning_is_refused_a_ring_carries_the_bytes(make_bench: Any, status: int) -> None:
    bench = make_bench(environment={"FAKE_CUPY_REFUSE_PIN": str(status)})
    report = bench.backend.status()
    assert report["host_path"] == "ring"
    assert "refused" in bench.backend.probe().reason
    copies = _round_trip(bench)
    assert {direct for _, _, direct in copies} == {True}  # the ring itself is pinned


def test_a_limit_pins_what_it_can(make_bench: Any) -> None:
    """As under WSL2: after the input slots it is over. An array that lies in both is copied in two pieces."""
    ring = 2 * 64 << 20
    bench = make_bench(environment={"FAKE_CUPY_PIN_LIMIT": str((4 << 20) + ring)})
    assert bench.backend.status()["pinned_nbytes"] == 4 << 20
    assert "refused" in bench.backend.probe().reason
    # Six slots in a row begin in the input region and end in the output region.
    large = np.arange((6 << 20) // 8 - 100, dtype=np.float64)
    handle = bench.client.put(large)
    if handle.slot < 4 < handle.slot + 6:
        bench.run("copies")
        assert bench.run_on("host", handle)["sum"] == large.sum()
    assert bench.run_on("uploads") >= 0
    bench.client.free(handle)
    _round_trip(bench)


def test_without_any_pinned_memory_it_still_works(make_bench: Any) -> None:
    bench = make_bench(environment={"FAKE_CUPY_REFUSE_PIN": "1", "FAKE_CUPY_REFUSE_RING": "1"})
    assert bench.backend.status()["host_path"] == "pageable"
    assert {direct for _, _, direct in _round_trip(bench)} == {False}


@pytest.mark.parametrize("path", ["ring", "pageable"])
def test_the_path_can_be_chosen(make_bench: Any, path: str) -> None:
    bench = make_bench(gpu_host_path=path)
    assert bench.backend.status()["host_path"] == path
    _round_trip(bench)


def test_the_setting_limits_what_is_pinned(make_bench: Any) -> None:
    bench = make_bench(gpu_pin_nbytes=5 << 20)
    assert bench.backend.status()["pinned_nbytes"] == 4 << 20


def test_the_ring_splits_and_joins(standin_cupy: Any) -> None:
    from gsb_server.gpu.pinned import Direction, HostPath

    for size in (1, 64, 65, 128, 129, 1000):
        path = HostPath(standin_cupy, standin_cupy.cuda.Stream(non_blocking=True), ring_nbytes=64)
        source = np.random.default_rng(size).integers(0, 255, size, dtype=np.uint8)
        device = standin_cupy.ndarray((size,), "u1")
        path.copy(Direction.TO_DEVICE, device.data.ptr, source.ctypes.data, size)
        back = np.zeros(size, np.uint8)
        path.copy(Direction.TO_HOST, device.data.ptr, back.ctypes.data, size)
        assert np.array_equal(back, source)


def test_pieces_end_where_registered_memory_ends(standin_cupy: Any) -> None:
    from gsb_server.gpu.pinned import HostPath

    path = HostPath(standin_cupy, standin_cupy.cuda.Stream())
    path.pin(0x10000, 0x1000)
    path.pin(0x20000, 0x1000)
    path.pin(0x21000, 0x1000)
    assert path._pieces(0x10000, 0x1000) == [(0, 0x1000, True)]
    assert path._pieces(0xF000, 0x3000) == [(0, 0x1000, False), (0x1000, 0x1000, True), (0x2000, 0x1000, False)]
    assert path._pieces(0x20800, 0x1000) == [(0, 0x800, True), (0x800, 0x800, True)]
    assert path._pieces(0x30000, 5) == [(0, 5, False)]
    path.pin(0x50000, 0)
    assert path.pinned_nbytes == 0x3000


# ---------------------------------------------------------------------------------- errors


class CUDARuntimeError(RuntimeError):
    """As CuPy's, without CuPy."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"cudaErrorNumber{status}")


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (CUDARuntimeError(2), Verdict.MEMORY),
        (CUDARuntimeError(700), Verdict.LOST),
        (CUDARuntimeError(719), Verdict.LOST),
        (CUDARuntimeError(214), Verdict.LOST),
        (CUDARuntimeError(46), Verdict.LOST),
        (CUDARuntimeError(1), Verdict.OTHER),
        (CUDARuntimeError(98), Verdict.OTHER),
        (MemoryError("std::bad_alloc: out_of_memory: CUDA error"), Verdict.MEMORY),
        (
            RuntimeError("CUDA error encountered at: file=x: cudaErrorIllegalAddress an illegal memory access"),
            Verdict.LOST,
        ),
        (RuntimeError("exception occurred! std::bad_alloc"), Verdict.MEMORY),
        (RuntimeError("something else"), Verdict.OTHER),
        (ValueError("an illegal memory access of words"), Verdict.OTHER),
        (DeviceLostError("gone"), Verdict.LOST),
        (RefusedByBackend("no"), Verdict.OTHER),
        (KeyboardInterrupt(), Verdict.OTHER),
    ],
    ids=lambda value: str(value)[:40],
)
def test_every_error_has_its_verdict(error: BaseException, verdict: Verdict) -> None:
    assert classify(error) is verdict


def test_a_sticky_error_is_put_into_words() -> None:
    assert describe_sticky(CUDARuntimeError(700)).startswith("an illegal memory access (")
    assert describe_sticky(RuntimeError("x")) == "x"


# ---------------------------------------------------------------------------------- the stand-in itself


def test_the_fake_has_the_names_and_signatures_of_the_real_one(standin_cupy: Any) -> None:
    import inspect
    import subprocess
    import sys

    names = ["asarray", "ascontiguousarray", "asfortranarray", "linalg.svd", "linalg.eigh"]
    there = subprocess.run(
        [
            sys.executable,
            "-c",
            "import cupy, inspect, operator, json, sys\n"
            "assert all(hasattr(cupy.cuda.runtime, n) for n in sys.argv[2].split(','))\n"
            "print(json.dumps({n: list(inspect.signature(operator.attrgetter(n)(cupy)).parameters)"
            " for n in sys.argv[1].split(',')}))",
            ",".join(names),
            "memcpyAsync,memcpy,hostRegister,hostUnregister,deviceSynchronize,memGetInfo,getDeviceProperties,"
            "driverGetVersion,runtimeGetVersion,CUDARuntimeError",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if "No module named 'cupy'" in there.stderr:
        pytest.skip("CuPy is not installed")
    assert there.returncode == 0, there.stderr
    import json
    import operator

    for name, parameters in json.loads(there.stdout).items():
        ours = list(inspect.signature(operator.attrgetter(name)(standin_cupy)).parameters)
        assert ours == parameters, name


def test_the_fake_notices_a_slot_that_is_let_go_too_early(standin_cupy: Any) -> None:
    """What the other tests rely on."""
    stream = standin_cupy.cuda.Stream()
    runtime = standin_cupy.cuda.runtime
    memory = standin_cupy.cuda.alloc_pinned_memory(8)
    host = np.frombuffer(memory, np.uint8)
    host[:] = 1
    device = standin_cupy.ndarray((8,), "u1")
    runtime.memcpyAsync(device.data.ptr, host.ctypes.data, 8, 1, stream.ptr)
    host[:] = 2
    assert list(device.get()) == [2] * 8
    with pytest.raises(runtime.CUDARuntimeError, match="InvalidValue"):
        runtime.memcpyAsync(device.data.ptr, host.ctypes.data + 4, 8, 1, stream.ptr)
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(device)
