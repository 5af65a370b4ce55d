# SPDX-License-Identifier: BSD-3-Clause
"""scikit-learn estimators whose work is done by another process, over shared memory."""

from __future__ import annotations
