"""Training many transcoders at once: recipe, stacked parameters, data order, loop, finish."""
