"""Sparse maps from a hook point's input to its output: train, evaluate, encode, exchange."""
