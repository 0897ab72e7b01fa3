"""Environments and the metrics that describe them: metric packs, disturbances, vectorised CartPole."""
