"""How long a step takes before it is run: the cost model, its calibration, and advice from both."""
