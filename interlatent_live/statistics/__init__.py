"""The rolling correlator as pure code.

Mergeable sums, windows, effective n, screening, exemplars, drift, alerts: no sockets, no clocks.
"""
