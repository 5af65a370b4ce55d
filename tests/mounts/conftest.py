# SPDX-License-Identifier: BSD-3-Clause
"""Mounts that go stale, over tmpfs and over a disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.mounts import Rig, build_passthrough, mounted, require_fuse
from helpers.places import Places


@pytest.fixture(scope="session")
def passthrough(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libfuse's `passthrough_ll`, compiled."""
    require_fuse()
    return build_passthrough(tmp_path_factory.mktemp("passthrough"))


@pytest.fixture
def rig(request: pytest.FixtureRequest, places: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A mount, by default each of: bindfs on tmpfs, write-back on tmpfs, write-back on a disk."""
    kind, _, place = request.param.partition("-")
    program = request.getfixturevalue("passthrough") if kind == "writeback" else None
    folder = places.new(request.node.name) if place == "tmpfs" else tmp_path_factory.mktemp("rig")
    try:
        with mounted(kind, folder, program) as found:
            yield found
    finally:
        shutil.rmtree(folder)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "rig" in metafunc.fixturenames and not any(
        "rig" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")
    ):
        metafunc.parametrize("rig", ["bindfs-tmpfs", "writeback-tmpfs", "writeback-disk"], indirect=True)
