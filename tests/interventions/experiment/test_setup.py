"""What an experiment must say, and what it may not."""

import msgspec
import pytest

from interlatent_live.errors import UserError
from interlatent_live.interventions.experiment.setup import (
    Hypothesis,
    Plan,
    Setup,
    When,
    read_setup,
)

GOOD = """
name = "a"
policy = "p"
transcoder = "t"
targets = [{ metric = "return", direction = 1 }]
"""


def written(tmp_path, text):
    path = tmp_path / "setup.toml"
    path.write_text(text)
    return path


def test_a_short_file_is_a_whole_setup(tmp_path):
    setup = read_setup(written(tmp_path, GOOD))
    assert setup.sizes.held_out == 500
    assert setup.sizes.per_kind * 3 >= 100
    assert setup.digest() == read_setup(written(tmp_path, GOOD)).digest()
    assert setup.digest() != read_setup(written(tmp_path, GOOD + "bound = 2.0\n")).digest()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("[sizes]\nheld_out = 100", "500 paired held-out episodes"),
        ("[sizes]\nper_kind = 10", "100 controls"),
        ("[sizes]\ncontrols = 501", "not more than those"),
        ('unit = "branches"\n[sizes]\nheld_out = 500', "30 states"),
        ("[seeds]\nselection = 3000500", "overlap"),
        ("boundd = 2.0", "unknown field"),
        ('targets = [{ metric = "return", direction = 2 }]', "describes no experiment"),
    ],
)
def test_what_is_less_than_the_definitions_ask_for_is_refused(tmp_path, more, said):
    with pytest.raises(UserError, match=said):
        read_setup(written(tmp_path, GOOD + more))


def test_a_quick_look_may_be_small(tmp_path):
    small = "quick = true\n[sizes]\nheld_out = 4\ncontrols = 2"
    setup = read_setup(written(tmp_path, GOOD + small))
    assert setup.quick


def test_a_plan_keeps_its_digest_on_the_way_through_the_audit(tmp_path):
    setup = read_setup(written(tmp_path, GOOD))
    chosen = Hypothesis(
        feature=3, when=When.ON, dose=1.0, value=0.25, norm=0.5, metric="return", direction=-1,
        selected_effect=-2.0, tried=9, bias_output=1, bias=-0.5, bias_selected_effect=-1.0,
        bias_tried=4,
    )  # fmt: skip
    assert chosen.sentence == "adding +0.25 to feature 3 while it is on lowers return"
    plan = Plan(
        setup=setup, policy_hash="p", transcoder="t", hook_point="h", dictionary="d",
        hypotheses=(chosen,), metrics=("return", "length"),
    )  # fmt: skip
    assert msgspec.convert(msgspec.to_builtins(plan), Plan).digest() == plan.digest()
    assert isinstance(setup, Setup)
