# SPDX-License-Identifier: BSD-3-Clause
"""The server of ``gsb``: runs scikit-learn calls for clients whose arrays travel through a shared pool.

Start it with ``python -m gsb_server`` (or ``gsb serve``), or build the ASGI application yourself with
``gsb_server.app.create_app(settings)``.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
