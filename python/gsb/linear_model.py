# SPDX-License-Identifier: BSD-3-Clause
"""Proxies of ``sklearn.linear_model``."""

from gsb._mirror import mirror

__all__, __getattr__, __dir__ = mirror(__name__)
