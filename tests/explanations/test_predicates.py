from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlatent_live.explanations.predicates import (
    And,
    Between,
    Columns,
    Comparison,
    Delta,
    Lag,
    Limits,
    Metric,
    Near,
    Not,
    Operator,
    Or,
    PredicateError,
    Quantity,
    Reduction,
    Window,
    all_of,
    any_of,
    depth,
    evaluate,
    history,
    leaf_count,
    metric_names,
    parse,
    past_of,
    term_values,
    terms_of,
    to_english,
    to_text,
)
from interlatent_live.stream import MetricSpec, Role

SPECS = (
    MetricSpec("angle", "rad"),
    MetricSpec("speed", "m/s"),
    MetricSpec("odd name`s", ""),
    MetricSpec("min", "min"),
    MetricSpec("time", "s", Role.CLOCK),
    MetricSpec("reward", "", Role.OUTCOME),
    MetricSpec("push", "", Role.ACTION),
    MetricSpec("entropy", "", Role.INTERNAL),
)

names = st.sampled_from(["angle", "speed", "odd name`s", "not", "a.b", "between", "x y", "Ünï"])
numbers = st.floats(allow_nan=False, allow_infinity=False).map(lambda x: x + 0.0)
quantities = numbers.map(Quantity)
steps = st.integers(2, 9)
terms = st.one_of(
    names.map(Metric),
    names.map(Delta),
    st.builds(Lag, names, st.integers(1, 9)),
    st.builds(Window, st.sampled_from(Reduction), names, steps),
)
betweens = st.tuples(terms, numbers, numbers).map(
    lambda x: Between(x[0], Quantity(min(x[1:])), Quantity(max(x[1:])))
)
leaves = st.one_of(
    st.builds(Comparison, terms, st.sampled_from(Operator), st.one_of(quantities, terms)),
    betweens,
    st.builds(Near, terms, quantities, numbers.map(lambda x: Quantity(abs(x)))),
)
predicates = st.recursive(
    leaves,
    lambda inner: st.one_of(
        inner.map(Not),
        st.lists(inner, min_size=2, max_size=3).map(lambda x: all_of(tuple(x))),
        st.lists(inner, min_size=2, max_size=3).map(lambda x: any_of(tuple(x))),
    ),
    max_leaves=8,
)
LOOSE = Limits(characters=10**6, comparisons=1000, depth=100)


@given(predicates)
def test_canonical_text_parses_to_an_equal_tree(predicate):
    text = to_text(predicate)
    again = parse(text, limits=LOOSE)
    assert again == predicate
    assert to_text(again) == text
    assert to_english(predicate)


@given(st.text(max_size=80))
def test_no_text_does_anything_but_parse_or_raise_a_predicate_error(text):
    try:
        parse(text, SPECS)
    except PredicateError as error:
        position = error.position
    else:
        position = 0
    assert 0 <= position <= len(text)


@given(st.lists(st.sampled_from(["angle", ">", "0.1", "(", ")", "and", "not", "lag", ",", "-"])))
def test_no_token_soup_escapes(tokens):
    try:
        predicate = parse(" ".join(tokens), SPECS)
    except PredicateError:
        return
    assert parse(to_text(predicate), SPECS) == predicate


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("angle>0.1", "angle > 0.1"),
        ("0.1 < angle", "angle > 0.1"),
        ("-0.1 < angle <= 0.2 rad", "angle > -0.1 and angle <= 0.2"),
        ("angle > 180 deg", "angle > 3.141592653589793"),
        ("speed < -3.6 km/h", "speed < -1"),
        ("near(angle, 0, 10 deg)", "near(angle, 0, 0.17453292519943295)"),
        ("between(delta(speed), -1, +1)", "between(delta(speed), -1, 1)"),
        ("angle > 1 or angle > 2 and angle > 3", "angle > 1 or angle > 2 and angle > 3"),
        ("(angle > 1 or angle > 2) and angle > 3", "(angle > 1 or angle > 2) and angle > 3"),
        ("not (angle > 1 and angle < 2)", "not (angle > 1 and angle < 2)"),
        ("not angle > 1", "not angle > 1"),
        ("((angle > 1))", "angle > 1"),
        ("`odd name``s` == 2", "`odd name``s` == 2"),
        ("min > 2 min and max(min, 3) < 5", "min > 2 and max(min, 3) < 5"),
        ("lag(angle, 3) > angle", "lag(angle, 3) > angle"),
        ("time >= 2 s and angle != 1e-3", "time >= 2 and angle != 0.001"),
    ],
)
def test_what_is_accepted_and_how_it_is_written(text, canonical):
    assert to_text(parse(text, SPECS)) == canonical


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("", 0, "empty"),
        ("angle", 5, "expected a comparison"),
        ("angle > ", 8, "expected a metric"),
        ("angle > 1 speed", 8, "'speed' does not convert to 'rad'"),
        ("angle > speed2 3", 8, "no metric 'speed2'"),
        ("angle > 1)", 9, "expected 'and', 'or' or the end"),
        ("angle > 1 m", 8, "'m' does not convert to 'rad'"),
        ("angle > speed", 8, "compare like with like"),
        ("height > 1", 0, "no metric 'height'"),
        ("reward > 1", 0, "role outcome"),
        ("push > 1", 0, "role action"),
        ("entropy > 1", 0, "role internal"),
        ("angle > 1 and push > 0", 14, "role action"),
        ("abs(angle) > 1", 0, "no function 'abs'"),
        ("lag(angle, 0) > 1", 11, "number of steps must be 1"),
        ("mean(angle, 1) > 1", 12, "must be 2"),
        ("mean(angle, 2.5) > 1", 12, "whole number"),
        ("mean(angle, 2000) > 1", 12, "1000"),
        ("mean(angle, 3 s) > 1", 14, "take no unit"),
        ("lag(lag(angle, 1), 1) > 1", 4, "no metric 'lag'"),
        ("between(angle, 2, 1)", 15, "lower bound"),
        ("near(angle, 0, -1)", 15, "negative"),
        ("1 > 2", 0, "needs a metric"),
        ("angle > 1e999", 8, "too large"),
        ("angle ; 1", 6, "unexpected character"),
        ("angle + 1 > 2", 6, "expected a comparison"),
        ("__import__('os')", 11, "unexpected character"),
        ("(" * 50 + "angle > 1" + ")" * 50, 8, "nested deeper"),
        ("not " * 50 + "angle > 1", 32, "nested deeper"),
        (" and ".join(["angle > 1"] * 25), 14 * 24, "more than 24"),
        ("angle > 1" + " " * 2000, 2000, "longer than"),
    ],
)
def test_errors_say_where_and_why(text, position, words):
    with pytest.raises(PredicateError, match=words) as caught:
        parse(text, SPECS)
    assert caught.value.position == position
    assert f"character {position + 1}" in str(caught.value)


def test_roles_are_the_callers_to_widen():
    assert metric_names(parse("push > 0", SPECS, roles={Role.ACTION})) == ("push",)


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("angle > 0.1234567", "angle is above 0.1235 rad"),
        ("not angle > 1", "angle is at most 1 rad"),
        ("delta(speed) > 0", "speed is rising"),
        ("delta(speed) < -0.5", "speed is falling by more than 0.5 m/s a step"),
        ("delta(speed) > -0.5", "the change of speed in one step is above -0.5 m/s"),
        ("lag(angle, 1) < 0", "angle 1 step ago was below 0 rad"),
        ("max(angle, 5) < 0", "the highest angle of the last 5 steps is below 0 rad"),
        ("between(angle, 0, 1)", "angle is between 0 and 1 rad"),
        ("near(angle, 0, 1)", "angle is within 1 rad of 0 rad"),
        (
            "angle > 1 and (speed > 1 or speed < 0)",
            "angle is above 1 rad and either speed is above 1 m/s, or speed is below 0 m/s",
        ),
    ],
)
def test_english(text, english):
    assert to_english(parse(text, SPECS)) == english


def columns(seed=0, n=60):
    random = np.random.default_rng(seed)
    episode = np.sort(random.integers(0, 5, n))
    t = np.concatenate([np.arange(c) for c in np.bincount(episode) if c])
    t = t + (np.arange(n) > n // 2) * (episode == episode[n // 2]) * 2  # one hole
    values = random.normal(size=(n, 2)).round(1)
    values[random.random((n, 2)) < 0.1] = np.nan
    return Columns(("a", "b"), values, past_of(episode, t)), episode, t


def slow_term(term, cols, row):
    column = cols.column(term.name)
    if cols.past[row] < history(term):
        return np.nan
    match term:
        case Metric():
            return column[row]
        case Delta():
            return column[row] - column[row - 1]
        case Lag(steps=back):
            return column[row - back]
        case Window(reduction=kind, steps=length):
            window = column[row - length + 1 : row + 1]
            if np.isnan(window).any():
                return np.nan
            return {"mean": np.mean, "min": np.min, "max": np.max}[kind](window)


ab = st.sampled_from(["a", "b"])
small_terms = st.one_of(
    ab.map(Metric),
    ab.map(Delta),
    st.builds(Lag, ab, st.integers(1, 6)),
    st.builds(Window, st.sampled_from(Reduction), ab, st.integers(2, 7)),
)


@given(small_terms, st.integers(0, 20))
def test_terms_are_what_a_loop_says_and_never_reach_over_an_episode(term, seed):
    cols, _, _ = columns(seed)
    fast = term_values(term, cols)
    slow = np.array([slow_term(term, cols, row) for row in range(len(fast))])
    np.testing.assert_allclose(fast, slow, atol=1e-12)


@given(small_terms, st.integers(0, 10))
def test_changing_one_episode_changes_no_other(term, seed):
    cols, episode, _ = columns(seed)
    before = term_values(term, cols)
    changed = cols.values.copy()
    changed[episode == episode[0]] += 100
    after = term_values(term, Columns(cols.names, changed, cols.past))
    np.testing.assert_array_equal(before[episode != episode[0]], after[episode != episode[0]])


def kleene(predicate, cols, row):  # noqa: PLR0911 - one return per case of the definition
    """True, False or None for undefined, straight from the definition."""
    match predicate:
        case Not(operand):
            inner = kleene(operand, cols, row)
            return None if inner is None else not inner
        case And(operands):
            sides = [kleene(x, cols, row) for x in operands]
            return False if False in sides else None if None in sides else True
        case Or(operands):
            sides = [kleene(x, cols, row) for x in operands]
            return True if True in sides else None if None in sides else False
        case Comparison(term, operator, other):
            left = slow_term(term, cols, row)
            right = other.value if isinstance(other, Quantity) else slow_term(other, cols, row)
            if np.isnan(left) or np.isnan(right):
                return None
            return {
                "<": left < right,
                "<=": left <= right,
                ">": left > right,
                ">=": left >= right,
                "==": left == right,
                "!=": left != right,
            }[operator]
        case Between(term, low, high):
            left = slow_term(term, cols, row)
            return None if np.isnan(left) else bool(low.value <= left <= high.value)
        case Near(term, centre, tolerance):
            left = slow_term(term, cols, row)
            return None if np.isnan(left) else abs(left - centre.value) <= tolerance.value


near_numbers = st.integers(-15, 15).map(lambda x: Quantity(x / 10))
exact_terms = st.one_of(ab.map(Metric), st.builds(Lag, ab, st.integers(1, 4)))
small_leaves = st.one_of(
    st.builds(
        Comparison, exact_terms, st.sampled_from(Operator), st.one_of(near_numbers, exact_terms)
    ),
    st.builds(Between, exact_terms, st.just(Quantity(-0.5)), near_numbers),
)
small_predicates = st.recursive(
    small_leaves,
    lambda inner: st.one_of(
        inner.map(Not),
        st.lists(inner, min_size=2, max_size=3).map(lambda x: all_of(tuple(x))),
        st.lists(inner, min_size=2, max_size=3).map(lambda x: any_of(tuple(x))),
    ),
    max_leaves=5,
)


@settings(max_examples=50)
@given(small_predicates, st.integers(0, 10))
def test_truth_is_kleenes_and_undefined_rows_are_counted(predicate, seed):
    cols, _, _ = columns(seed, 30)
    truth = evaluate(predicate, cols)
    slow = [kleene(predicate, cols, row) for row in range(30)]
    np.testing.assert_array_equal(truth.holds, [x is True or x is np.True_ for x in slow])
    np.testing.assert_array_equal(truth.undefined, [x is None for x in slow])
    assert truth.undefined_count == sum(x is None for x in slow)


def test_a_window_mean_survives_a_large_offset():
    values = 1e9 + np.random.default_rng(0).normal(size=(500, 1))
    cols = Columns(("a",), values, np.arange(500))
    for steps in range(2, 40):
        fast = term_values(Window(Reduction.MEAN, "a", steps), cols)[steps - 1 :]
        slow = np.lib.stride_tricks.sliding_window_view(values[:, 0], steps).mean(1)
        np.testing.assert_allclose(fast - 1e9, slow - 1e9, atol=1e-6)


def test_no_rows_are_no_trouble():
    empty = Columns(("a",), np.zeros((0, 1)), np.zeros(0, np.int64))
    assert len(evaluate(parse("mean(a, 3) > 0 and lag(a, 2) < 1"), empty).holds) == 0


def test_an_unknown_metric_is_a_key_error():
    cols, _, _ = columns()
    with pytest.raises(KeyError):
        evaluate(parse("c > 1"), cols)


def test_sizes():
    predicate = parse("a > 1 and (b > 1 or not lag(a, 2) < 0) and near(a, 0, 1)")
    assert leaf_count(predicate) == 4
    assert depth(predicate) == 4
    assert metric_names(predicate) == ("a", "b")
    assert terms_of(predicate) == (Metric("a"), Metric("b"), Lag("a", 2))
