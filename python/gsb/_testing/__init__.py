# SPDX-License-Identifier: BSD-3-Clause
"""Parts of `gsb.pytest_plugin`."""
