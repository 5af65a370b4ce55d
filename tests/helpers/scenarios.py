# SPDX-License-Identifier: BSD-3-Clause
"""What a victim of the failpoint tests does: pieces of child text that together pass every label.

A victim gets the pool's path, prepares itself, says "ready", waits for "go", and does the thing. From "go" on its
failpoint is armed. If it is not killed there it says "done" and, when told so, checks that everything it still has is
as it left it, and leaves. Names common to all texts: ``path``, ``stamped``, ``check`` (see helpers.pools),
``attach()``, ``go()`` and ``kept``, a list of (array, seed) to look at in the end.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SCENARIOS", "Scenario"]

_COMMON = f"""
sys.path.append({str(Path(__file__).resolve().parents[1])!r})
from helpers.pools import check_stamped as check, small, stamped
path, armed = args
kept = []
def attach():
    return shmpool.Pool.attach(path, prefault_nbytes=0, timeout=20)
def go():
    say("ready")
    orders = hear()
    os.environ["SHMPOOL_FAILPOINT"] = armed
    return orders
"""

_END = """
say("done")
hear()
for array, seed in kept:
    check(array, seed)
del kept, array
say("intact")
hear()
"""


@dataclass(frozen=True)
class Scenario:
    """One thing that a victim does.

    Parameters
    ----------
    name : str
    body : str
        The text between the common beginning and end.
    before : str
        What the test prepares: ``"pool"`` it is attached, ``"absent"`` there is no pool, ``"abandoned"`` there is a
        pool full of a dead client's things and nobody attached, ``"dead"`` it is attached and a third process that
        held something of everything was killed, ``"waiter"`` it is attached and a thread of it waits for a slot of the
        region "scratch", all of whose slots the victim holds, ``"blocked"`` it is attached and has slot 2 of input.
    """

    name: str
    body: str
    before: str = "pool"

    @property
    def text(self) -> str:
        """The whole text."""
        return _COMMON + inspect.cleandoc(self.body) + _END


# Holds something of every kind: run by the third process, which is killed before the victim begins.
LEAVER = (
    _COMMON
    + """
pool = attach() if os.path.exists(path) else small(path)
loan = pool.loan((8,), "f8", region="output")              # WRITING
span = pool.loan((80_000,), "u1", region="scratch")        # WRITING with a tail
sealed = pool.put(stamped(1), "input")                     # SEALED
wide = pool.put(stamped(2, 80_000), "input")               # SEALED with a tail
view = pool.get(sealed)                                    # pinned by itself
retired = pool.put(stamped(3), "input")
kept_view = pool.get(retired)
pool.free(retired)                                         # RETIRED, pinned
say("full")
hear()
"""
)

SCENARIOS = (
    Scenario("create", "go(); pool = small(path); array, seed = stamped(5), 5", "absent"),
    Scenario("attach", "go(); pool = attach(); array, seed = stamped(5), 5"),
    Scenario("take over", "go(); pool = attach(); array, seed = stamped(5), 5", "abandoned"),
    Scenario("create anew", "go(); pool = small(path, anew=True); array, seed = stamped(5), 5", "abandoned"),
    Scenario("put", "pool = attach(); go(); h = pool.put(stamped(5)); kept.append((pool.get(h), 5))"),
    Scenario(
        "put large", "pool = attach(); go(); h = pool.put(stamped(5, 65536), 'output'); kept.append((pool.get(h), 5))"
    ),
    Scenario(
        "put span",
        "pool = attach(); go(); h = pool.put(stamped(5, 150_000), 'input'); kept.append((pool.get(h), 5))",
    ),
    Scenario(
        "span blocked",
        # The rotation starts at slot 1: takes it, meets slot 2, gives slot 1 back and goes elsewhere.
        """
        pool = attach()
        pool.free(pool.put(stamped(1)))
        go()
        h = pool.put(stamped(5, 100_000))
        kept.append((pool.get(h), 5))
        """,
        "blocked",
    ),
    Scenario(
        "loan and seal",
        """
        pool = attach()
        go()
        with pool.loan((1000,), "u8", region="output") as loan:
            loan.array[...] = stamped(5, 8000)
            h = loan.seal()
        kept.append((pool.get(h), 5))
        """,
    ),
    Scenario(
        "loan and abort",
        """
        pool = attach()
        go()
        with pool.loan((1000,), "u8", region="output") as loan:
            loan.array[...] = 7
        del loan
        array, seed = stamped(5), 5
        """,
    ),
    Scenario(
        "span loan and abort",
        """
        pool = attach()
        go()
        with pool.loan((150_000,), "u1") as loan:
            loan.array[...] = 7
        del loan
        array, seed = stamped(5), 5
        """,
    ),
    Scenario(
        "get", "pool = attach(); h = pool.put(stamped(5)); go(); kept.append((pool.get(h), 5)); pool.get(h, copy=True)"
    ),
    Scenario(
        "get stale",
        """
        pool = attach()
        h = pool.put(stamped(5))
        pool.free(h)
        go()
        try:
            pool.get(h)
        except shmpool.StaleHandleError:
            array, seed = stamped(5), 5
        """,
    ),
    Scenario("free", "pool = attach(); h = pool.put(stamped(5)); go(); pool.free(h); array, seed = stamped(5), 5"),
    Scenario(
        "free span",
        "pool = attach(); h = pool.put(stamped(5, 150_000)); go(); pool.free(h); array, seed = stamped(5), 5",
    ),
    Scenario(
        "free viewed, then drop the view",
        """
        pool = attach()
        h = pool.put(stamped(5, 150_000))
        view = pool.get(h)
        go()
        pool.free(h)
        check(view, 5)
        del view
        array, seed = stamped(5), 5
        """,
    ),
    Scenario(
        "give",
        """
        pool = attach()
        h = pool.put(stamped(5, 150_000))
        pool.give(h, shmpool.ClientId(*go()))
        kept.append((pool.get(h), 5))
        """,
    ),
    Scenario(
        "adopt",
        """
        pool = attach()
        other = attach()
        h = other.put(stamped(5))
        go()
        pool.adopt(h)
        kept.append((pool.get(h), 5))
        """,
    ),
    Scenario("reclaim", "pool = attach(); go(); pool.reclaim(); array, seed = stamped(5), 5", "dead"),
    Scenario(
        "close",
        """
        pool = attach()
        h = [pool.put(stamped(5)), pool.put(stamped(6, 100_000))]
        go()
        pool.close()
        array, seed = stamped(5), 5
        """,
    ),
    Scenario(
        "free for a waiter",
        """
        pool = attach()
        h = [pool.put(stamped(k), "scratch") for k in range(2)]
        go()
        pool.free(h[0])
        pool.free(h[1])
        array, seed = stamped(5), 5
        """,
        "waiter",
    ),
)
