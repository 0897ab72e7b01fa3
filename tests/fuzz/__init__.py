"""Fuzzing of the decoder; see README.md."""
