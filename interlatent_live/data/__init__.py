"""Files the wheel carries: the demo's policies, transcoders and calibration recordings."""
