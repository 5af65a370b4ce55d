# SPDX-License-Identifier: BSD-3-Clause
"""The ways an array takes between client and server, and the choice among them (``docs/transports.md``)."""

from __future__ import annotations

from gsb.transports.base import Dialog, Opened, Transport
from gsb.transports.choice import KINDS, choose

__all__ = ["KINDS", "Dialog", "Opened", "Transport", "choose"]
