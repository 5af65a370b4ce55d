# SPDX-License-Identifier: BSD-3-Clause
"""The pages for people in trouble are complete, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shmpool import errors

ROOT = Path(__file__).parents[2]
PAGES = ("troubleshooting.md", "concurrency.md", "glossary.md")


def anchor(title: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        name, _, fragment = target.partition("#")
        path = ROOT / "docs" / (name or page)
        assert path.exists(), target
        if fragment:
            lines = path.read_text(encoding="utf-8").splitlines()
            assert fragment in {anchor(line.lstrip("# ")) for line in lines if line.startswith("#")}, target


@pytest.mark.parametrize("page", PAGES)
def test_files_named_exist(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:src|tests|examples|docs)/[\w./]+)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_error_has_its_place() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert [name for name in errors.__all__ if f"`{name}`" not in text.replace("shmpool.", "")] == []


def test_messages_are_those_of_the_code() -> None:
    """A message on the page that no source contains is out of date: compare the words between the figures."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    source = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "src" / "shmpool").glob("*.py*") if path.suffix != ".so"
    )
    source = re.sub(r'"\s*f?"', "", source)  # adjacent literals
    hints = [
        re.sub(r"\s+", " ", hint).strip()
        for block in re.findall(r"```\n(.*?)```", page, re.DOTALL)
        for hint in re.findall(r"Hint: (.*?)(?=\n[A-Z][A-Za-z]+Error:|\Z)", block, re.DOTALL)
    ]
    assert len(hints) >= 15
    assert [hint for hint in hints if re.sub(r" /.*", "", hint) not in source] == []
