# SPDX-License-Identifier: BSD-3-Clause
"""The command line of ``python -m gsb.accel``."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any, Final

from gsb.accel import _run, _workers
from gsb.accel._install import LOCAL_NBYTES, install
from gsb.errors import GSBError

__all__ = ["main"]

_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def main(arguments: list[str]) -> None:
    """Install, and run the program that the arguments name."""
    options, kind, program, rest = _parse(arguments)
    try:
        _prepare(options)
    except GSBError as error:
        sys.exit(f"{sys.executable}: {error}")
    try:
        if kind == "-m":
            _run.run_module(program, rest)
        elif kind == "-c":
            _run.run_command(program, rest)
        elif kind == "script":
            _run.run_script(program, rest)
        elif sys.stdin.isatty():
            _run.run_prompt()
        else:
            _run.run_stdin(rest)
    except _run.ProgramError as error:
        # Python's own status for a program that is not there.
        print(f"{sys.executable}: {error}", file=sys.stderr)
        sys.exit(1 if kind == "-m" else 2)


def _prepare(options: argparse.Namespace) -> None:
    settings: dict[str, Any] = {}
    if options.server is not None:
        settings["server"] = options.server
    if options.local_below is not None:
        settings["local_nbytes"] = options.local_below
    if options.fallback is not None:
        settings["fallback"] = options.fallback
    if options.start_server:
        from gsb.accel import _server

        settings.update(_server.ensure(options.server, options.backend))
    if options.report:
        from gsb.accel import _summary

        _workers.report_folder = _summary.print_at_exit()
    install(exclude=options.exclude, **settings)


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, str, str, list[str]]:
    """Split our options from the program and its arguments."""
    parser = _parser()
    takes_value = {text for action in parser._actions if action.nargs is None for text in action.option_strings}
    index = 0
    while index < len(arguments) and arguments[index].startswith("--") and arguments[index] != "--":
        index += 2 if arguments[index] in takes_value else 1
    ours, rest = arguments[:index], arguments[index:]
    if rest[:1] == ["-h"]:
        ours, rest = [*ours, "-h"], rest[1:]
    options = parser.parse_args(ours)
    if rest[:1] == ["--"]:
        rest = rest[1:]
    if not rest or rest[0] == "-":
        return options, "stdin", "-", rest[1:]
    for kind in ("-m", "-c"):
        if rest[0] == kind:
            if len(rest) == 1:
                parser.error(f"argument expected for the {kind} option")
            return options, kind, rest[1], rest[2:]
        if rest[0].startswith(kind):
            return options, kind, rest[0][2:], rest[1:]
    if rest[0].startswith("-"):
        parser.error(f"unknown option {rest[0]}")
    return options, "script", rest[0], rest[1:]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gsb.accel",
        usage="%(prog)s [options] [-m module | -c command | script.py | -] [arguments …]",
        description="Run a program whose scikit-learn estimators work on the gsb server. The program is not changed, "
        "and sees the same results.",
        allow_abbrev=False,
    )
    parser.add_argument("--server", metavar="URL", help="server to use; default: $GSB_SERVER, else this user's")
    parser.add_argument(
        "--start-server", action="store_true", help="start a server for the length of the program if none answers"
    )
    parser.add_argument("--backend", metavar="NAME", help="what the server computes with that is started")
    parser.add_argument(
        "--local-below",
        metavar="SIZE",
        type=_size,
        help="calls with less data run in the program itself, such as 500K, 64M, 0; default: $GSB_LOCAL_NBYTES, "
        f"else {LOCAL_NBYTES >> 20}M",
    )
    parser.add_argument(
        "--fallback",
        choices=("quiet", "local", "error"),
        help="what to do without a server: run scikit-learn in the program and warn once, warn for each call, or "
        "raise; default: $GSB_FALLBACK, else quiet",
    )
    parser.add_argument(
        "--exclude", metavar="PACKAGE", action="append", default=[], help="a package that keeps scikit-learn's classes"
    )
    parser.add_argument("--report", action="store_true", help="say at the end what ran where, and why, on stderr")
    return parser


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+)\s*([KMG]?)i?B?", text.strip(), re.IGNORECASE)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 64M")
    return int(found[1]) * _UNITS[found[2].upper()]
