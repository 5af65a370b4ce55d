# SPDX-License-Identifier: BSD-3-Clause
"""What the benchmarks have in common: turns, the other process, workspaces, the report."""
