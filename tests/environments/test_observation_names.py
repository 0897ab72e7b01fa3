"""Numbers of an observation under the names and units of their metrics."""

import numpy as np
import pytest

from interlatent_live.environments.metric_packs import FAMILIES
from interlatent_live.environments.observation_names import ObservedNumber, observed_numbers


def test_each_number_of_a_cart_is_a_metric():
    assert observed_numbers(FAMILIES["CartPole-v1"]) == (
        ObservedNumber("cart_position", "m"),
        ObservedNumber("cart_velocity", "m/s"),
        ObservedNumber("pole_angle", "rad"),
        ObservedNumber("pole_angular_velocity", "rad/s"),
    )


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda one: one.environment[-20:])
def test_a_name_is_given_only_to_the_number_that_the_metric_is(family):
    seen = np.random.default_rng(5).uniform(0.3, 0.9, (8, family.obs_dim))
    metrics = family.measure(seen)
    names = [spec.name for spec in family.specs]
    numbers = observed_numbers(family)
    assert len(numbers) == family.obs_dim
    for index, one in enumerate(numbers):
        if one.name == f"observation {index}":
            assert (one.unit, one.scale) == ("", 1.0)
            continue
        place = names.index(one.name)
        assert family.specs[place].unit == one.unit
        np.testing.assert_allclose(seen[:, index] * one.scale, metrics[:, place], rtol=1e-7)
