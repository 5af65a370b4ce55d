# SPDX-License-Identifier: BSD-3-Clause
"""The contenders of the hop benchmark, one per file, all with the interface of `bench.peers.base.Peer`."""
