import json
from pathlib import Path

import pytest

from interlatent_live.interventions.reproduction.document import paragraph, render
from interlatent_live.interventions.reproduction.experiment import FAMILIES, UNSTEERED_NAME
from interlatent_live.interventions.reproduction.plots import ARMS, REPLACEMENT
from interlatent_live.interventions.reproduction.settings import Settings
from interlatent_live.interventions.reproduction.summary import arm_of, knee, summarise, wins

DOCS = Path(__file__).parents[3] / "docs"


def estimate(mean, half=2.0, n=2000):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def policy(seed, gains, returns_by_width=(30.0, 200.0, 250.0), unsteered=260.0):
    """A policy's result with given gains over unsteered, by family."""
    bias = gains["constant logit bias"]
    conditional_bias = gains["logit bias while a condition holds"]
    return {
        "training_seed": seed,
        "cpu_seconds": 60.0,
        "percentile": {"feature at hidden.0": 0.9, "feature at hidden.1": 0.5},
        "arms": [
            {
                "family": family,
                "arm": f"{family} winner",
                "tried": 168,
                "return": estimate(unsteered + gains.get(family, 0.0)),
                "over": {
                    "unsteered": estimate(gains.get(family, 0.0)),
                    "bias": estimate(gains.get(family, 0.0) - bias),
                    "conditional_bias": estimate(gains.get(family, 0.0) - conditional_bias),
                },
            }
            for family in (UNSTEERED_NAME, *FAMILIES)
        ],
        "replacement": [
            {"width": width, "replaced": where, "return": estimate(value)}
            for width, value in zip((2, 4, 8), returns_by_width, strict=True)
            for where in ("both", "hidden.0", "hidden.1")
        ],
    }


def data(*policies):
    settings = json.loads(json.dumps(Settings(policies=len(policies)).as_json()))
    return {
        "settings": settings,
        "settings_digest": "0" * 16,
        "seconds": 200.0,
        "workers": 2,
        "resumed": 0,
        "policies": list(policies),
    }


NOTHING = dict.fromkeys(FAMILIES, 0.0)


def test_the_words_follow_the_figures():
    flat = paragraph(data(policy(1, NOTHING), policy(2, NOTHING)))
    assert "0 of 2 policies gain at least half" in flat
    assert "in none of them does a steered feature beat that" in flat
    assert "the condition is what helps, not the feature" in flat
    winner = {**NOTHING, "feature at hidden.0": 60.0, "feature while a condition holds": 40.0}
    strong = paragraph(data(policy(1, winner), policy(2, NOTHING)))
    assert "1 of 2 policies gain at least half" in strong
    assert "a steered feature beats that in 1 of 4 comparisons" in strong
    assert "in 1 of 2 policies" in strong
    assert "the condition is what helps" not in strong


def test_the_knee_is_where_nine_tenths_of_the_return_are_kept():
    assert knee(policy(1, NOTHING)) == 8
    assert knee(policy(1, NOTHING, returns_by_width=(30.0, 240.0, 250.0))) == 4
    assert knee(policy(1, NOTHING, returns_by_width=(30.0, 40.0, 50.0))) is None


def test_promised_comparisons_are_corrected_together():
    summary = summarise([policy(seed, NOTHING) for seed in range(5)])
    assert len(summary["tests"]) == 20
    assert wins(summary, "feature at hidden.0", "bias") == 0
    assert all(test["p_holm"] == pytest.approx(1.0) for test in summary["tests"])


@pytest.fixture(scope="module")
def published():
    return json.loads((DOCS / "reproduction.json").read_text(encoding="utf-8"))


def test_the_page_in_docs_is_what_the_figures_make_of_it(published):
    assert (DOCS / "reproduction.md").read_text(encoding="utf-8") == render(published)


def test_the_page_in_docs_was_run_with_the_settings_of_the_command(published):
    settings = Settings()
    assert published["settings"] == json.loads(json.dumps(settings.as_json()))
    assert published["settings_digest"] == settings.digest()


def test_the_page_in_docs_keeps_what_was_asked_for(published):
    policies = published["policies"]
    assert len(policies) >= 5
    for item in policies:
        unsteered = arm_of(item, UNSTEERED_NAME)["return"]
        assert unsteered["n"] >= 1000
        # The band was checked on other episodes; held out, a mean may lie just outside.
        assert abs(unsteered["mean"] - 261) <= 25 + 4 * (unsteered["high"] - unsteered["mean"])
        assert {row["family"] for row in item["arms"]} == {UNSTEERED_NAME, *FAMILIES}
    assert published["settings"]["selection_episodes"] <= 100


def test_the_plots_lie_beside_the_page():
    page = (DOCS / "reproduction.md").read_text(encoding="utf-8")
    for name in (ARMS, REPLACEMENT):
        assert f"]({name})" in page
        assert (DOCS / name).read_text(encoding="utf-8").lstrip().startswith("<?xml")
