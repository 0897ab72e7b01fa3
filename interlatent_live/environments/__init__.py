"""Environments and what describes them: metric packs, disturbances, vectorised CartPole."""
