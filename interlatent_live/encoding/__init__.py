"""From activations to sparse features on a device: micro-batches, encode-and-select, staging.

The room exists apart from ``transcoders`` because it knows nothing of training, files or hashes: it
takes plain weight arrays once and turns rows of activations into compressed sparse rows, on one CPU
thread or on a CUDA device, as fast as that device allows.
"""
