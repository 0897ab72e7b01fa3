"""Counterfactual branches: from one moment on, with and without an intervention, side by side."""
