"""Placing and supervising services: one port, one adapter for local processes."""
