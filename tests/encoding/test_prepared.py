from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.encoding.backend import EncoderWeights
from interlatent_live.encoding.cpu import CpuBackend, CpuEncoder
from interlatent_live.encoding.prepared import PreparedEncoders
from interlatent_live.errors import UserError


class Device(CpuBackend):
    """Counts what it prepared and what of it was closed."""

    def __init__(self):
        self.open: list[CpuEncoder] = []
        self.prepared = 0

    def prepare(self, weights):
        encoder = super().prepare(weights)
        self.open.append(encoder)
        self.prepared += 1
        encoder.close = lambda: self.open.remove(encoder)  # type: ignore[method-assign]  # a spy
        return encoder


def weights(n_features: int) -> EncoderWeights:
    ones = np.ones((2, n_features), np.float32)
    return EncoderWeights(ones, ones[0], k=1)


def test_the_one_used_longest_ago_makes_room():
    device = Device()
    size = weights(10).n_bytes
    ready = PreparedEncoders(device, limit_bytes=2 * size)
    first = ready.get("a", lambda: weights(10))
    second = ready.get("b", lambda: weights(10))
    assert ready.get("a", lambda: pytest.fail("it is ready")) is first
    third = ready.get("c", lambda: weights(10))
    assert device.open == [first, third]
    assert (ready.n_bytes, ready.evicted, len(ready)) == (2 * size, 1, 2)
    assert ready.get("b", lambda: weights(10)) is not second
    ready.release("b")
    ready.release("never there")
    assert (ready.n_bytes, len(ready)) == (size, 1)
    ready.close()
    assert (device.open, ready.n_bytes) == ([], 0)


def test_what_can_never_fit_is_refused_and_nothing_makes_room_for_it():
    ready = PreparedEncoders(Device(), limit_bytes=weights(10).n_bytes)
    ready.get("small", lambda: weights(10))
    with pytest.raises(UserError, match=r"transcoder big takes 132 bytes .* encoder.weight_bytes"):
        ready.get("big", lambda: weights(11))
    assert len(ready) == 1


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=40), st.integers(1, 400))
def test_the_bound_holds_and_what_is_open_is_what_is_counted(uses, limit):
    device = Device()
    ready = PreparedEncoders(device, limit_bytes=limit)
    for number, release in uses:
        if release:
            ready.release(str(number))
            continue
        given_weights = weights(1 + 5 * number)
        if given_weights.n_bytes > limit:
            with pytest.raises(UserError):
                ready.get(str(number), lambda: given_weights)  # noqa: B023 - called at once
        else:
            encoder = ready.get(str(number), lambda: given_weights)  # noqa: B023 - likewise
            assert encoder.n_features == given_weights.n_features
        assert ready.n_bytes <= limit
        assert ready.n_bytes == sum(4 * 3 * encoder.n_features for encoder in device.open)
