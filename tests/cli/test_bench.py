# SPDX-License-Identifier: BSD-3-Clause
"""``bench`` measures every way, checks what arrives, and leaves nothing behind. No figure is asserted."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pools import small

from shmpool.cli import bench, contenders

Run = Callable[..., Any]

WAYS = ["pool, put", "pool, loan", "SharedMemory, reused", "SharedMemory, fresh", "Pipe", "Queue", "np.copyto, no hop"]


def test_json(run: Run, pool_path: Path) -> None:
    result = run("bench", "--json", "--max-mib", "1", "--seconds", "0.3")
    assert result.code == 0, result.err
    sizes = result.data["sizes"]
    assert [entry["nbytes"] for entry in sizes] == [4 << 10, 256 << 10, 1 << 20]
    for entry in sizes:
        assert list(entry["seconds"]) == WAYS
        assert min(entry["seconds"].values()) > 0
        assert entry["ratio_to_put"]["pool, put"] == 1
        assert entry["ratio_to_copyto"]["np.copyto, no hop"] == 1
    assert list(pool_path.parent.iterdir()) == []


def test_table(run: Run, pool_path: Path) -> None:
    result = run("bench", "--max-mib", "1", "--seconds", "0.3", COLUMNS="80")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if line.startswith(tuple(WAYS))]
    assert len(rows) == len(WAYS)
    assert all(row.count("x") >= 3 for row in rows)


def test_plot(run: Run, pool_path: Path, tmp_path: Path) -> None:
    picture = tmp_path / "hops.png"
    result = run("bench", "--json", "--max-mib", "1", "--seconds", "0.3", "--plot", str(picture))
    assert result.code == 0, result.err
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    assert len(result.data["sizes"]) == 3


def test_plot_without_matplotlib(
    pool_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said before anything is measured."""
    monkeypatch.setattr(bench.plot, "available", lambda: False)
    monkeypatch.setattr(bench, "_run_all", lambda *_: pytest.fail("measured"))
    picture = tmp_path / "hops.png"
    assert bench.run(pool_path, as_json=True, max_mib=1, seconds=0.1, picture=picture) == 1
    assert "pip install matplotlib" in capsys.readouterr().err
    assert not picture.exists()


def test_without_rich(run: Run, without_rich: dict[str, str]) -> None:
    result = run("bench", "--max-mib", "1", "--seconds", "0.3", **without_rich)
    assert len(result.data["sizes"]) == 3
    assert "rich is not installed" in result.err


def test_takes_no_more_than_there_is(pool_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_free", lambda _: 64 << 20)
    assert bench._largest(pool_path.parent, 128 << 20) == 8 << 20
    monkeypatch.setattr(bench, "_free", lambda _: 0)
    assert bench._largest(pool_path.parent, 128 << 20) == 4096


def test_wrong_bytes_are_noticed(pool_path: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    queue: Any = None
    with small(pool_path) as pool, ours, theirs:
        way = contenders.Contenders(pool, ours, queue, np.arange(8192, dtype=np.uint64).astype(np.uint8))
        try:
            theirs.send(way.expected + 1)
            with pytest.raises(AssertionError, match="wrong bytes arrived"):
                way.ways["pool, put"]()
        finally:
            way.close()


def test_a_reader_that_dies_is_one_line(pool_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(bench, "_run_all", lambda *_: (_ for _ in ()).throw(EOFError))
    assert bench.run(pool_path, as_json=True, max_mib=1, seconds=0.1) == 1
    assert capsys.readouterr().err == "shmpool: the reading process failed: it ended\n"
