# SPDX-License-Identifier: BSD-3-Clause
"""``python -m gsb_server``: run the server until it is told to stop.

``gsb serve`` starts this module and watches it; both ways give the same server.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from . import listen
from .settings import Settings, parse_size


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gsb_server",
        description="Runs scikit-learn calls for gsb clients on this machine. "
        "Settings not given here come from GSB_* variables.",
    )
    parser.add_argument("--socket", type=Path, help="Unix socket to listen on")
    parser.add_argument("--host", help="address for TCP (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="TCP port; 0 means no TCP")
    parser.add_argument("--pool", dest="pool_path", type=Path, help="file of the shared pool")
    parser.add_argument("--slot-size", dest="slot_nbytes", type=parse_size, help="bytes of one slot, such as 256M")
    parser.add_argument("--input-slots", type=int)
    parser.add_argument("--output-slots", type=int)
    parser.add_argument("--scratch-slots", type=int)
    parser.add_argument("--workers", type=int, help="calls computed at once")
    parser.add_argument("--backend", help="auto, or the name of one")
    parser.add_argument(
        "--strict-gpu", action="store_true", default=None, help="refuse what the GPU cannot do instead of using the CPU"
    )
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"])
    # For whoever starts the server as a child.
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--parent-fd", type=int, help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the server; return the exit status."""
    arguments = vars(_parser().parse_args(argv))
    ready_fd = arguments.pop("ready_fd")
    parent_fd = arguments.pop("parent_fd")
    try:
        settings = Settings.from_env(**arguments)
        # Not at the top: it imports scikit-learn, which a wrong option need not wait for.
        from .backends import registry

        registry.check(settings.backend)
    except ValueError as error:
        print(f"gsb_server: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    try:
        return listen.serve(settings, ready_fd=ready_fd, parent_fd=parent_fd)
    except listen.ListenError as error:
        print(f"gsb_server: {error}", file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main())
