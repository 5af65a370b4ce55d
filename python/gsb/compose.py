# SPDX-License-Identifier: BSD-3-Clause
"""Mirrors ``sklearn.compose``: estimators are proxies, the rest is its own."""

from gsb._mirror import mirror

__getattr__, __dir__ = mirror(__name__)
