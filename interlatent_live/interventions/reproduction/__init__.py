"""The published CartPole experiment, done again with its controls beside it."""
