# SPDX-License-Identifier: BSD-3-Clause
"""Check the channel protocol exhaustively with Spin, and check that the check can fail.

`channel.pml` is the model; docs/model.md describes it, the configurations and the mutations.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.spin import SEARCH_DEPTH, check_complete, number, verify

MODEL = Path(__file__).with_name("channel.pml")

INVARIANTS = ("NEVER_TWICE", "NEVER_TORN", "NONE_LOST", "NOTHING_LEAKS", "NOBODY_STUCK", "IN_ORDER")


def configuration(cap: int, senders: int, receivers: int, cleaners: int, messages: int, *deaths: int) -> list[str]:
    names = ("CAP", "NS", "NR", "NCL", "NM", "MAXCRASH", "MAXCLEANERCRASH")
    values = (cap, senders, receivers, cleaners, messages, *deaths)
    return [f"-D{name}={value}" for name, value in zip(names, values, strict=True)]


CONFIGURATIONS = {
    # one sender, two receivers: who takes, who gives back, who takes again
    "receivers": configuration(2, 1, 2, 1, 3, 2, 0),
    # two senders: tombstones, overtaking, tails advanced for the dead
    "senders": configuration(2, 2, 1, 1, 3, 2, 0),
    # one cell: every message meets the leavings of the one before, under two cleaners at once
    "one_cell": configuration(1, 2, 1, 2, 3, 1, 0),
    # two cleaners, one of which may die in the middle: the only case that needs the look through all cells
    "cleaners": [*configuration(2, 1, 2, 2, 2, 1, 1), "-DRESCUE"],
    # nobody dies
    "calm": configuration(2, 2, 2, 1, 3, 0, 0),
}

_CLEANED = {
    "rest after a death",
    "a cleaner frees a slot in custody",
    "a receiver takes a tombstone away",
    "a sender lowers head",
    "a slot goes back into custody",
}
MET = {
    "receivers": _CLEANED
    | {"a receiver lowers head a lap", "a receiver lowers head after it passed READING"}
    | {"a message is taken ahead of one being written"},
    "senders": _CLEANED
    | {"a sender advances tail for another", "a sender takes a tombstone away"}
    | {"a message is taken ahead of one being written"},
    "one_cell": _CLEANED | {"a cleaner finds another was faster", "a sender takes a tombstone away"},
    "cleaners": (_CLEANED - {"a sender lowers head"})
    | {"a cleaner finds another was faster", "a receiver rescues a message behind head"},
    "calm": {"rest without a death", "a message is taken ahead of one being written"},
}

# What each mutation breaks is said in docs/model.md; here, where Spin has to find it, and as what.
MUTATIONS = {
    "MUT_NO_HELP": ("senders", "NOBODY_STUCK"),
    "MUT_PUBLISH_BEFORE_CUSTODY": ("senders", "NEVER_TORN"),
    "MUT_PASS_NO_RECHECK": ("receivers", "NOBODY_STUCK"),
    "MUT_AHEAD_NO_LOOK": ("senders", "IN_ORDER"),
    "MUT_ACCEPT_BEFORE_REDEEM": ("receivers", "NOTHING_LEAKS"),
    "MUT_SLOTS_FIRST": ("receivers", "NEVER_TORN"),
    "MUT_BURY_NO_FREE": ("senders", "NOTHING_LEAKS"),
    "MUT_HANDLE_NO_LOOK": ("one_cell", "NEVER_TORN"),
    "MUT_NO_LOWER": ("receivers", "NOBODY_STUCK"),
    "MUT_TAKE_NO_CAS": ("receivers", "NEVER_TORN"),
    "MUT_HEAL_THE_LIVING": ("receivers", "NEVER_TWICE"),
    "MUT_BURY_READING": ("receivers", "NONE_LOST"),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_protocol_holds(name: str, tmp_path: Path) -> None:
    report = verify(MODEL, tmp_path, CONFIGURATIONS[name], optimize="-O2")
    check_complete(report)
    met = set(re.findall(r"^met: (.*)$", report, re.MULTILINE))
    assert met >= MET[name], sorted(MET[name] - met)
    assert number(r"(\d+) states, stored", report) > 100_000, report
    assert number(r"depth reached (\d+)", report) < SEARCH_DEPTH, report


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutation_is_caught(mutation: str, tmp_path: Path) -> None:
    name, invariant = MUTATIONS[mutation]
    report = verify(MODEL, tmp_path, [*CONFIGURATIONS[name], f"-D{mutation}"], optimize="-O1")
    assert number(r"errors: (\d+)", report) == 1, report
    found = re.search(r"assertion violated (.*) \(at depth (\d+)\)", report)
    assert found is not None, report
    assert [named for named in INVARIANTS if named in found[1]] == [invariant], report


def test_nothing_in_the_model_is_untested() -> None:
    """Every mutation is turned on by a test; every situation is met; every invariant can fail."""
    text = MODEL.read_text()
    assert set(re.findall(r"\bMUT_\w+", text.replace("MUT_*", ""))) == set(MUTATIONS)
    assert set(re.findall(r'MET\(\d+, "(.*?)"\)', text)) == set().union(*MET.values())
    assert {invariant for _, invariant in MUTATIONS.values()} == set(INVARIANTS)
