from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.errors import UserError
from interlatent_live.transcoders.config import Architecture, Target, TranscoderConfig

SIZES: dict[str, Any] = {"d_in": 4, "d_out": 4, "n_features": 8}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"architecture": Architecture.RELU, "l1": 0.1, "k": 2}, "k"),
        ({"architecture": Architecture.RELU}, "l1"),
        ({"architecture": Architecture.TOPK}, "k"),
        ({"architecture": Architecture.TOPK, "k": 9}, "k is 9"),
        ({"architecture": Architecture.TOPK, "k": 2, "l1": 0.1}, "l1"),
        ({"architecture": Architecture.BATCHTOPK, "k": 2, "widths": (4, 8)}, "widths"),
        ({"architecture": Architecture.MATRYOSHKA, "k": 2}, "widths"),
        ({"architecture": Architecture.MATRYOSHKA, "k": 2, "widths": (4, 4, 8)}, "ascending"),
        ({"architecture": Architecture.MATRYOSHKA, "k": 2, "widths": (2, 4)}, "n_features"),
        ({"architecture": Architecture.TOPK, "k": 2, "target": Target.INPUT, "skip": True}, "skip"),
    ],
)
def test_what_an_architecture_cannot_honour_is_refused(arguments, named):
    with pytest.raises(UserError, match=named):
        TranscoderConfig(**SIZES, **arguments)


@pytest.mark.parametrize("field", ["d_in", "d_out", "n_features"])
@pytest.mark.parametrize("value", [0, -1, 1 << 40])
def test_impossible_sizes_are_refused(field, value):
    with pytest.raises(UserError, match=field):
        TranscoderConfig(architecture=Architecture.TOPK, k=1, **{**SIZES, field: value})


@given(
    kind=st.sampled_from(list(Architecture)),
    d=st.integers(1, 64),
    n_features=st.integers(2, 512),
    skip=st.booleans(),
    data=st.data(),
)
def test_json_round_trip(kind, d, n_features, skip, data):
    config = TranscoderConfig(
        architecture=kind,
        d_in=d,
        d_out=d + 1,
        n_features=n_features,
        k=None if kind is Architecture.RELU else data.draw(st.integers(1, n_features)),
        l1=data.draw(st.floats(0, 10)) if kind is Architecture.RELU else None,
        widths=(1, n_features) if kind is Architecture.MATRYOSHKA else None,
        skip=skip,
    )
    assert msgspec.json.decode(msgspec.json.encode(config), type=TranscoderConfig) == config


def test_an_unknown_field_is_refused():
    raw = b'{"architecture":"topk","d_in":4,"d_out":4,"n_features":8,"k":2,"kk":3}'
    with pytest.raises(msgspec.ValidationError, match="kk"):
        msgspec.json.decode(raw, type=TranscoderConfig)
