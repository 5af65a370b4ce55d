# SPDX-License-Identifier: BSD-3-Clause
"""Check the slot protocol exhaustively with Spin, and check that the check can fail.

`slots.pml` is the model; docs/model.md describes it, the configurations and the mutations.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.spin import SEARCH_DEPTH, check_complete, number, verify

MODEL = Path(__file__).with_name("slots.pml")

CLAIM1, CLAIM2, PIN, FREE, ADOPT, RECLAIM, ABORT, STOPPABLE = (1 << n for n in range(8))

INVARIANTS = (
    "NEVER_TWO_OWNERS",
    "NEVER_PINNED_RECLAIMED",
    "NO_TORN_READ",
    "EVERY_DEAD_FREED",
    "DOUBLE_FREE_DETECTED",
    "NO_STRANDED_RETIRED",
    "NEVER_EVICTED_ALIVE",
)


@dataclass(frozen=True)
class Process:
    """One process: its client index (None: a newcomer), what it may do, how many operations."""

    index: int | None
    may: int
    budget: int

    def __str__(self) -> str:
        return f"{0 if self.index is None else self.index + 1},{self.may},{self.budget}"


@dataclass(frozen=True)
class Configuration:
    slots: int
    clients: int
    processes: tuple[Process, ...]
    spans: bool = False
    stops: int = 0

    def defines(self) -> list[str]:
        attached = [p.index + 1 for p in self.processes if p.index is not None]
        found = [
            f"-DNS={self.slots}",
            f"-DNC={self.clients}",
            f"-DNP={len(self.processes)}",
            f"-DHW0={max(attached)}",
            f"-DMAXSTOP={self.stops}",
        ]
        found += [f"-DP{n}={process}" for n, process in enumerate(self.processes)]
        return [*found, "-DSPANS"] if self.spans else found


CONFIGURATIONS = {
    # 2 slots, two clients that do everything, one cleaner; everybody may die anywhere
    "single": Configuration(
        slots=2,
        clients=3,
        processes=(
            Process(0, CLAIM1 | FREE | ABORT, 3),
            Process(1, CLAIM1 | PIN | FREE | ADOPT | RECLAIM, 3),
            Process(2, RECLAIM, 2),
        ),
    ),
    # 3 slots and spans of two; the cleaner may also stop for ever in the middle
    "span": Configuration(
        slots=3,
        clients=3,
        spans=True,
        stops=1,
        processes=(
            Process(0, CLAIM1 | CLAIM2 | FREE | ABORT, 2),
            Process(1, CLAIM1 | PIN | FREE | ADOPT, 2),
            Process(2, RECLAIM | STOPPABLE, 1),
        ),
    ),
    # 1 slot, reused again and again: two that pin and free against one that claims and frees
    "race": Configuration(
        slots=1,
        clients=3,
        processes=(
            Process(0, CLAIM1 | FREE | ADOPT, 5),
            Process(1, PIN | FREE | ADOPT | RECLAIM, 3),
            Process(2, PIN | FREE | ADOPT, 3),
        ),
    ),
    # one client, three newcomers on two indices; a cleaner may stop for ever, a newcomer too
    "takeover": Configuration(
        slots=1,
        clients=2,
        stops=1,
        processes=(
            Process(0, CLAIM1 | PIN | FREE, 2),
            Process(None, CLAIM1 | PIN | RECLAIM | STOPPABLE, 2),
            Process(None, CLAIM1 | PIN | FREE, 2),
            Process(None, RECLAIM | STOPPABLE, 1),
        ),
    ),
    # a span adopted by another client, its maker dead, the maker's index taken over by newcomers
    "span_takeover": Configuration(
        slots=2,
        clients=2,
        spans=True,
        processes=(
            Process(0, CLAIM2, 1),
            Process(1, PIN | FREE | ADOPT | RECLAIM, 2),
            Process(None, CLAIM1 | CLAIM2 | PIN | FREE, 2),
            Process(None, RECLAIM, 1),
        ),
    ),
}

# What a search has to have met, or it proves nothing (the model prints these): everywhere, and where
# the configuration aims at it.
MET_EVERYWHERE = {
    "claim offers RETIRED to finalize",
    "everything at rest and clean",
    "finalize lost the head",
    "finalize put off by a count",
    "free lost",
    "free refused: stale",
    "pin refused: stale",
    "read of RETIRED under a pin",
    "read of SEALED under a pin",
    "reclaim frees WRITING",
    "reclaim lost SEALED",
    "reclaim retires SEALED",
    "unpin finalizes",
}
MET_WITH_SPANS = {
    "claim gives back a span",
    "cleaner leaves a TAIL to its head",
    "finalize lost a TAIL",
    "finalize sees a TAIL of a later claim",
    "read of a tail under a pin",
    "reclaim frees an orphan TAIL",
    "reclaim lost a TAIL",
}
MET = {
    "single": {"claim lost", "two cleaners of one client", "reclaim lost WRITING to another cleaner"},
    "span": MET_WITH_SPANS | {"the last cleaner cleans beside a stopped one"},
    "race": {"adopted", "adopt lost", "free goes on after an adoption"},
    "takeover": {"newcomer attached", "the last cleaner cleans beside a stopped one"},
    "span_takeover": MET_WITH_SPANS | {"newcomer attached", "newcomer leaves a TAIL of its index to its head"},
}

# What each mutation breaks is said in docs/model.md; here, where Spin has to find it, and as what.
MUTATIONS = {
    "MUT_PIN_NO_RECHECK": ("race", "NEVER_PINNED_RECLAIMED"),
    "MUT_ROW_BEFORE_RETIRE": ("race", "NEVER_PINNED_RECLAIMED"),
    "MUT_FINALIZE_NO_ROW": ("race", "NEVER_PINNED_RECLAIMED"),
    "MUT_UNPIN_NO_FINALIZE": ("race", "NO_STRANDED_RETIRED"),
    "MUT_FREE_NO_RETRY": ("race", "DOUBLE_FREE_DETECTED"),
    "MUT_CAS_WITHOUT_GENERATION": ("race", "DOUBLE_FREE_DETECTED"),
    "MUT_HEAD_BEFORE_TAILS": ("span", "EVERY_DEAD_FREED"),
    "MUT_TAIL_NO_LINK_CHECK": ("span", "NEVER_TWO_OWNERS"),
    "MUT_TAIL_NO_HEAD_CHECK": ("span", "NEVER_PINNED_RECLAIMED"),
    "MUT_PIN_NO_GENERATION": ("race", "NO_TORN_READ"),
    "MUT_NONCE_AFTER_UNLOCK": ("takeover", "NEVER_EVICTED_ALIVE"),
    "MUT_CLEAN_WITHOUT_LOCK": ("takeover", "EVERY_DEAD_FREED"),
    "MUT_CLEANER_EXCLUSIVE": ("takeover", "EVERY_DEAD_FREED"),
    "MUT_ZERO_ROW_AFTER_UNLOCK": ("takeover", "EVERY_DEAD_FREED"),
    "MUT_NO_HIGH_WATER": ("takeover", "NEVER_PINNED_RECLAIMED"),
    "MUT_HIGH_WATER_EARLY": ("takeover", "NEVER_PINNED_RECLAIMED"),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_protocol_holds(name: str, tmp_path: Path) -> None:
    report = verify(MODEL, tmp_path, CONFIGURATIONS[name].defines(), optimize="-O2")
    check_complete(report)
    met = set(re.findall(r"^met: (.*)$", report, re.MULTILINE))
    assert met >= MET_EVERYWHERE | MET[name], sorted((MET_EVERYWHERE | MET[name]) - met)
    states = number(r"(\d+) states, stored", report)
    depth = number(r"depth reached (\d+)", report)
    assert states > 100_000, report
    assert depth < SEARCH_DEPTH, report
    print(f"\nmodel {name}: {states} states, depth {depth}, errors 0")


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutation_is_caught(mutation: str, tmp_path: Path) -> None:
    name, invariant = MUTATIONS[mutation]
    report = verify(MODEL, tmp_path, [*CONFIGURATIONS[name].defines(), f"-D{mutation}"], optimize="-O1")
    assert number(r"errors: (\d+)", report) == 1, report
    found = re.search(r"assertion violated (.*) \(at depth (\d+)\)", report)
    assert found is not None, report
    caught = [named for named in INVARIANTS if named in found[1]]
    assert caught == [invariant], report
    states = number(r"(\d+) states, stored", report)
    print(f"\nmodel {mutation}: {caught[0]} at depth {found[2]} after {states} states ({name})")


def test_nothing_in_the_model_is_untested() -> None:
    """Every mutation is turned on by a test; every situation is met; every invariant can fail."""
    text = MODEL.read_text()
    assert set(re.findall(r"\bMUT_\w+", text)) == set(MUTATIONS)
    assert set(re.findall(r'MET\(\d+, "(.*?)"\)', text)) == MET_EVERYWHERE.union(*MET.values())
    assert {invariant for _, invariant in MUTATIONS.values()} == set(INVARIANTS)
