"""A policy that is not torch: publish its inputs, outputs and metrics; imports no torch."""

import sys

import numpy as np

from interlatent_live import Tap
from interlatent_live.stream import MetricSpec

rng = np.random.default_rng(0)
weights = rng.normal(size=(3, 16))
speed = MetricSpec("speed", "m/s", description="of the cart")
with Tap([speed, "reward"], agent="numpy", endpoint=sys.argv[1], policy_hash="my-policy-1") as tap:
    for step in range(int(sys.argv[2])):
        obs = rng.normal(size=3)
        hidden = np.tanh(obs @ weights)
        values = {"speed": obs[0], "reward": -abs(obs[0])}
        tap.publish(values, x={"layer": obs}, y={"layer": hidden}, truncated=step % 50 == 49)
