"""What runs in the agent's process: hooks, ring, tap, sender, Gymnasium and SB3 wrappers."""
