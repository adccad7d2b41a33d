"""Throughput of the real trainer: rows in processes of their own, peers interleaved with ours."""
