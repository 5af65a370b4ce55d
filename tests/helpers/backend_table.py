# SPDX-License-Identifier: BSD-3-Clause
"""The table of ``docs/backends.md``, written from the tables that the backends go by."""

from __future__ import annotations

from gsb_server.backends import array_api_table, cuml_table

__all__ = ["BEGIN", "END", "table"]

BEGIN = "<!-- written by tests/server/test_backend_docs.py -->\n"
END = "<!-- end -->\n"

_INTEGERS = {"kept": "", "float64": "", "refused": "X of integers"}


def _on_arrays(row: array_api_table.Row) -> str:
    parts = [limit.describe(name) for name, limit in row.limits.items()]
    text = "yes" + (f", with {'; '.join(parts)}" if parts else "")
    lacks = [_INTEGERS[row.integers]] if _INTEGERS[row.integers] else []
    if row.target == "classes" and "U" not in row.kinds:
        lacks.append("text labels")
    if row.target == "labels":
        lacks.append("labels other than integers")
    if row.same_dtype:
        lacks.append("another dtype than in the fit")
    return text + (f"; not: {', '.join(lacks)}" if lacks else "")


def _on_cuml(row: cuml_table.Row) -> str:
    return "yes" + (f"; not: {row.note}" if row.note else "")


def table() -> str:
    """Return the table in Markdown."""
    lines = ["| `sklearn.` | cuml | array_api |", "|---|---|---|"]
    for name in sorted({*cuml_table.ROWS, *array_api_table.ROWS}):
        left = _on_cuml(cuml_table.ROWS[name]) if name in cuml_table.ROWS else ""
        right = _on_arrays(array_api_table.ROWS[name]) if name in array_api_table.ROWS else ""
        lines.append(f"| `{name.removeprefix('sklearn.')}` | {left} | {right} |".replace("  |", " |"))
    return "\n".join(lines) + "\n"
