# SPDX-License-Identifier: BSD-3-Clause
"""Backends: where work is done. See ``base`` for the interface, ``registry`` for the choice."""

from __future__ import annotations
