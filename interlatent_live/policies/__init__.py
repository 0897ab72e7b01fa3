"""Policies as torch modules: plain files, content hashes, training of the demo policy."""
