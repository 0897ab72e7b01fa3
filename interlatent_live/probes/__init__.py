"""Linear probes: for a target one can name, a probe beats a dictionary's feature."""
