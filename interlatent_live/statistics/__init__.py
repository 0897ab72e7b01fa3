"""The rolling correlator as pure code: mergeable sums, windows, effective n, screening, exemplars, drift."""
