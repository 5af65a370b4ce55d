# SPDX-License-Identifier: BSD-3-Clause
"""The page about the backends says what their tables say. ``GSB_WRITE_DOCS=1`` writes it anew."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gsb_server.backends import array_api_table, cuml_table
from gsb_server.backends.sklearn import estimator_class
from helpers.backend_table import BEGIN, END, table

PAGE = Path(__file__).parents[2] / "docs" / "backends.md"


def test_the_table_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    shown, after = rest.split(END)
    if os.environ.get("GSB_WRITE_DOCS"):
        PAGE.write_text(before + BEGIN + table() + END + after, encoding="utf-8")
        return
    assert shown == table(), "docs/backends.md is out of date: run this test with GSB_WRITE_DOCS=1"


def test_the_counts_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"{len(cuml_table.ROWS)} estimators" in text
    assert f"{len(array_api_table.ROWS)} estimators" in text


def test_rows_are_of_real_estimators_methods_and_parameters() -> None:
    for name, row in array_api_table.ROWS.items():
        cls = estimator_class(name)
        assert all(hasattr(cls, method) for method in row.methods), name
        assert set(row.limits) <= set(cls().get_params()), name  # type: ignore[attr-defined]
    for name in cuml_table.ROWS:
        assert estimator_class(name).__name__ == name.rpartition(".")[2]


def test_every_command_on_the_page_is_real() -> None:
    text = PAGE.read_text(encoding="utf-8")
    makefile = (PAGE.parents[1] / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z-]+)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    project = (PAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    for extra in re.findall(r"shmpool\[(\w+)\]", text):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra
