"""Steering experiments: chosen on some seeds, written down in the audit, tested on others, live.

What is to be shown is fixed and sealed before the first intervention of the test; every arm goes
through the control service, as an operator's intervention does; all controls are reported.
"""
