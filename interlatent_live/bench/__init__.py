"""Benchmarks as commands: each row carries the limit or the peer measured in the same run."""
