# SPDX-License-Identifier: BSD-3-Clause
"""Arguments, exit codes, and the one place where an error becomes a line for people.

Exit codes: 0 done; 1 something is wrong (a FAIL of `doctor`, a pool that is in use or unusable); 2 wrong usage; 3 there
is no pool at the path; 130 interrupted (Ctrl-C); 141 the reader of our output went away.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import PoolNotFoundError, ShmPoolError
from ..paths import default_path

__all__ = ["main"]

EXIT_WRONG = 1
EXIT_NO_POOL = 3
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

_EPILOG = """\
exit codes:
  0  done
  1  something is wrong: a FAIL of doctor, a pool that is in use or unusable
  2  wrong usage
  3  there is no pool at the path
"""


def _seconds(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--path",
        type=Path,
        help="the pool file (default: $SHMPOOL_PATH, else pool.bin in this user's folder under /dev/shm)",
    )
    common.add_argument("--json", action="store_true", help="machine-readable output")

    parser = argparse.ArgumentParser(
        prog="python -m shmpool",
        description="Look at shared-memory pools. stat, top and doctor only read: they attach to nothing, "
        "create nothing and free nothing.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    stat = commands.add_parser("stat", parents=[common], help="one picture of a pool: slots, owners, pins, clients")
    stat.add_argument("--all", action="store_true", help="a line for every free slot too")

    top = commands.add_parser("top", parents=[common], help="the same, live: who holds what, longest first")
    top.add_argument("--interval", type=_seconds, default=0.5, metavar="S", help="seconds between two looks (0.5)")
    top.add_argument(
        "--leak-after",
        type=_seconds,
        default=60.0,
        metavar="S",
        help="mark sealed arrays that nobody reads after this many seconds (60)",
    )
    top.add_argument("--once", action="store_true", help="two looks, one picture, then end")

    commands.add_parser("doctor", parents=[common], help="check this machine and this pool; say what to do")

    gc = commands.add_parser("gc", parents=[common], help="free at once what dead processes left in a pool")
    gc.add_argument("--remove", action="store_true", help="delete the pool, if nobody uses it")

    bench = commands.add_parser("bench", parents=[common], help="measure this machine: pool against pipe and others")
    bench.add_argument("--max-mib", type=int, default=128, metavar="N", help="the largest array, in MiB (128)")
    bench.add_argument("--seconds", type=_seconds, default=20.0, metavar="S", help="how long to measure (20)")
    bench.add_argument("--plot", type=Path, metavar="FILE", help="also draw the figures into a PNG (needs matplotlib)")
    return parser


def _dispatch(arguments: argparse.Namespace) -> int:
    path = default_path(create=False) if arguments.path is None else Path(os.path.abspath(arguments.path))
    # Imported here: each command alone needs its own part, and `rich` and `multiprocessing` are slow to import.
    if arguments.command == "stat":
        from .stat import run as run_stat

        return run_stat(path, as_json=arguments.json, every_slot=arguments.all)
    if arguments.command == "top":
        from .top import run as run_top

        return run_top(
            path,
            as_json=arguments.json,
            interval=arguments.interval,
            leak_after=arguments.leak_after,
            once=arguments.once,
        )
    if arguments.command == "doctor":
        from .doctor import run as run_doctor

        return run_doctor(path, as_json=arguments.json)
    if arguments.command == "gc":
        from .gc import run as run_gc

        return run_gc(path, as_json=arguments.json, remove=arguments.remove)
    from .bench import run as run_bench

    return run_bench(
        path,
        as_json=arguments.json,
        max_mib=arguments.max_mib,
        seconds=arguments.seconds,
        picture=arguments.plot,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command == "bench" and arguments.max_mib < 1:
        parser.error("argument --max-mib: at least 1")
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except PoolNotFoundError as error:
        print(f"shmpool: {error}", file=sys.stderr)
        return EXIT_NO_POOL
    except ShmPoolError as error:
        print(f"shmpool: {error}", file=sys.stderr)
        return EXIT_WRONG
    except BrokenPipeError:
        # The interpreter flushes stdout once more at its end and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
