"""What runs in the agent's process: hooks, ring, sender, tap, Gymnasium and Stable-Baselines3 wrappers."""
