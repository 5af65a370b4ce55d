# SPDX-License-Identifier: BSD-3-Clause
"""Which transport a connection uses: the first of the list that works, or the one that was asked for."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any, Final

from gsb.errors import TransportUnavailableError
from gsb.transports.base import Dialog, Opened, Transport

_log = logging.getLogger("gsb")

#: Name -> module and class, in the order in which they are tried.
KINDS: Final[dict[str, tuple[str, str]]] = {
    "shared": ("gsb.transports.shared", "SharedTransport"),
    "stream": ("gsb.transports.stream", "StreamTransport"),
    "file": ("gsb.transports.file", "FileTransport"),
}


def transport_class(kind: str) -> type[Transport]:
    """Give the class of a kind."""
    module, name = KINDS[kind]
    found: type[Transport] = getattr(importlib.import_module(module), name)
    return found


def choose(
    offers: dict[str, Any],
    dialog: Callable[[dict[str, Any]], Dialog],
    wanted: str | None = None,
    tried: list[tuple[str, str]] | None = None,
) -> Opened:
    """Open the first transport that works.

    Parameters
    ----------
    offers : dict
        The server's offers by kind, from its hello.
    dialog : callable
        Makes a `Dialog` of an offer.
    wanted : str, optional
        Try this kind alone.
    tried : list, optional
        Receives kind and reason of each that does not work.

    Raises
    ------
    TransportUnavailableError
        None works; the message has the reason of each.
    """
    refused = [] if tried is None else tried
    for kind in KINDS if wanted is None else (wanted,):
        offer = offers.get(kind)
        if not isinstance(offer, dict):
            refused.append((kind, "the server does not offer it"))
            continue
        try:
            found = transport_class(kind)
        except ImportError as error:
            # A client that streams needs no compiled part of ours.
            refused.append((kind, f"it cannot be loaded: {error}"))
            continue
        try:
            opened = found.open(dialog(offer))
        except TransportUnavailableError as error:
            refused.append((kind, error.message))
            continue
        opened.transport.reason = _reason(wanted, refused)
        _log.info("[gsb] transport %s (%s): %s", kind, opened.transport.describe(), opened.transport.reason)
        return opened
    raise TransportUnavailableError("; ".join(f"{kind}: {reason}" for kind, reason in refused))


def _reason(wanted: str | None, refused: list[tuple[str, str]]) -> str:
    if wanted is not None:
        return "it was asked for"
    if not refused:
        return "both sides see the same memory"
    return "; ".join(f"not {kind}: {reason}" for kind, reason in refused)
