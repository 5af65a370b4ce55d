# SPDX-License-Identifier: BSD-3-Clause
"""The two-terminal programs in the documentation are run as they stand there.

A Python block right after the comment ``<!-- terminal 1 -->`` or ``<!-- terminal 2 -->`` is a program; a first one and
the second one after it are a pair.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "examples/two_terminals/README.md")

_BLOCK = re.compile(r"<!-- terminal ([12]) -->\s*```python\n(.*?)```", re.DOTALL)


def pairs_of(page: str) -> list[tuple[str, str]]:
    """The pairs of programs on a page."""
    path = ROOT / page
    blocks = _BLOCK.findall(path.read_text(encoding="utf-8")) if path.exists() else []
    terminals = [terminal for terminal, _ in blocks]
    assert terminals == ["1", "2"] * (len(terminals) // 2), f"{page}: terminals {terminals} do not pair up"
    texts = [text for _, text in blocks]
    return list(zip(texts[::2], texts[1::2], strict=True))


FOUND = [pytest.param(pair, id=f"{page}-{n}") for page in PAGES for n, pair in enumerate(pairs_of(page))]


@pytest.mark.usefixtures("pool_of_examples")
@pytest.mark.parametrize("pair", FOUND)
def test_programs_run(two_terminals: Callable[..., tuple[str, str]], tmp_path: Path, pair: tuple[str, str]) -> None:
    for number, text in enumerate(pair, 1):
        (tmp_path / f"terminal{number}.py").write_text(text, encoding="utf-8")
    outputs = two_terminals((tmp_path / "terminal1.py",), (tmp_path / "terminal2.py",))
    assert all(outputs), "both terminals show something"


@pytest.mark.parametrize("pair", FOUND)
def test_fifteen_lines_are_enough(pair: tuple[str, str]) -> None:
    assert sum(bool(line.strip()) for text in pair for line in text.splitlines()) <= 15


def test_the_proposal_and_the_programs_agree() -> None:
    """The files beside the page are the same programs, with docstring and formatted imports."""

    def core(text: str) -> list[str]:
        lines = [line.split("  #")[0].rstrip() for line in text.splitlines()]
        return [line for line in lines[lines.index(next(x for x in lines if x.startswith("with "))) :] if line]

    (pair,) = pairs_of("examples/two_terminals/README.md")
    folder = ROOT / "examples" / "two_terminals"
    assert core(pair[0]) == core((folder / "producer.py").read_text(encoding="utf-8"))
    consumer = core((folder / "consumer.py").read_text(encoding="utf-8"))
    assert [line.replace("array.dtype, ", "") for line in consumer] == core(pair[1])
