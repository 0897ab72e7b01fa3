"""Recorded streams as MCAP files, written crash-safe and read through the live decoder."""
