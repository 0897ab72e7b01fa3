"""Stepping in: commands to an agent, the state machine that obeys them, approvals.

Pure values and state machines. What an intervention does to activations is in ``interventions/``.
"""
