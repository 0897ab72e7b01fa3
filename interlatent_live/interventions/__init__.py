"""Bounded changes to a hook point's output: steer, clamp, scale, ablate."""
