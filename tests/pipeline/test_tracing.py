"""The same rows give the same trace in every service, and a claim is in the trace of its rows."""

from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.explanations.writers import Usage
from interlatent_live.feed.documents import ClaimsDocument
from interlatent_live.pipeline import tracing
from interlatent_live.pipeline.gathering import joined
from interlatent_live.pipeline.tracing import (
    ClaimTraces,
    RowTraces,
    Stage,
    span_of_row,
    traced_rows,
)
from tests.support.planted_stream import HOOK, TRANSCODER, episodes

KEY = ("run", HOOK, 3)
ADDRESS = f"{HOOK}/3@{TRANSCODER}"


class Clock:
    def __init__(self):
        self.now = 10**18

    def __call__(self):
        self.now += 1000
        return self.now


@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 300), min_size=1, max_size=20),
    st.integers(1, 500),
)
def test_however_rows_are_cut_into_messages_the_same_ones_are_traced(first, sizes, every):
    whole = list(traced_rows(first, sum(sizes), every))
    found, at = [], first
    for size in sizes:
        found += traced_rows(at, size, every)
        at += size
    assert found == whole == [s for s in range(first, first + sum(sizes)) if s % every == 0]
    assert list(traced_rows(first, sum(sizes), 0)) == []


def test_services_that_know_nothing_of_each_other_make_one_tree():
    spans, clock = [], Clock()
    encoder, correlator, explainer = (RowTraces(100, spans.append, clock) for _ in range(3))
    batches = list(episodes(3))
    for batch in batches:
        encoder.arrived(batch.boot_id, batch.steps)
        encoder.passed(Stage.ENCODE, batch, last=False)
    encoder.passed(Stage.PUBLISH, joined(batches))
    correlator.arrived("boot", joined(batches).steps)
    correlator.passed(Stage.CORRELATE, joined(batches))
    for batch in batches:
        explainer.arrived(batch.boot_id, batch.steps)
    assert explainer.passed(Stage.TAKE_IN, joined(batches)) == span_of_row(
        "boot", 300, Stage.TAKE_IN
    )
    by_trace: dict = {}
    for span in spans:
        by_trace.setdefault(span.ref.trace_id, {})[span.name] = span
    assert len(by_trace) == 4, "rows 0, 100, 200 and 300 of 360"
    for tree in by_trace.values():
        assert set(tree) == {"step", "encode", "publish", "correlate", "take in"}
        for name, parent in (
            ("encode", "step"),
            ("publish", "encode"),
            ("correlate", "publish"),
            ("take in", "publish"),
        ):
            assert tree[name].parent == tree[parent].ref
            assert tree[parent].began_ns <= tree[name].began_ns <= tree[name].ended_ns
        assert tree["step"].parent is None
        assert tree["step"].ended_ns == tree["encode"].began_ns
        assert tree["encode"].ended_ns <= tree["publish"].began_ns
        assert tree["publish"].began_ns < tree["publish"].ended_ns, "it waited for the others"
    assert {tree["step"].attributes["interlatent.step"] for tree in by_trace.values()} == {
        0, 100, 80, 60,
    }  # fmt: skip


def test_rows_that_never_leave_a_service_are_forgotten(monkeypatch):
    monkeypatch.setattr(tracing, "MOST_UNDER_WAY", 4)
    traces = RowTraces(1, lambda _: None)
    (batch,) = episodes(1)
    traces.arrived("boot", batch.steps)
    assert len(traces._since) == 4


def document(**changes):
    claim = {
        "address": ADDRESS,
        "version": 1,
        "verdict": "pending",
        "reason": "",
        "writer": "built-in (no LLM)",
        "predicate": "lean > 0.8",
        "balanced_accuracy": None,
        "p_adjusted": None,
        "episodes_heldout": 0,
        "challenger": None,
    } | changes
    return ClaimsDocument("run", "boot", HOOK, TRANSCODER, [claim], {}, {}, "w", 0, False, 1)


def test_a_claim_is_in_the_trace_of_the_rows_it_was_proposed_from_with_all_its_verdicts():
    spans: list = []
    traces = ClaimTraces(120, spans.append, Clock())
    first, second, third = episodes(3)
    traces.taken(first)
    traces.published([document()], traces.now())
    traces.published([document()], traces.now())
    traces.taken(second)
    verified = {"verdict": "verified", "balanced_accuracy": 0.97, "episodes_heldout": 12}
    traces.published([document(**verified)], traces.now())
    traces.taken(third)
    traces.published([document(version=2)], traces.now())
    took = [span for span in spans if span.name == "take in"]
    proposed, judged, again = (span for span in spans if span.name != "take in")
    assert [one.name for one in (proposed, judged, again)] == [
        "propose", "judge verified", "propose",
    ]  # fmt: skip
    assert proposed.parent == took[0].ref
    assert judged.parent == proposed.ref
    assert judged.links == (took[1].ref,), "the rows that brought it about"
    assert judged.attributes["interlatent.claim.balanced_accuracy"] == 0.97
    assert "interlatent.claim.p_adjusted" not in judged.attributes, "undefined is left out"
    assert again.parent == took[2].ref
    assert again.links == (proposed.ref,)


def test_what_a_model_proposes_is_under_its_request_and_a_second_opinion_under_the_claim():
    spans: list = []
    traces = ClaimTraces(120, spans.append, Clock())
    (rows,) = episodes(1)
    traces.taken(rows)
    traces.published([document()], traces.now())
    paid = {"model": "openai:small", "usage": Usage(100, 20, 2), "dollars": 0.25}
    traces.requested(KEY, "word", traces.now(), **paid)
    traces.published([document(challenger=document(writer="openai:small").claims[0])], traces.now())
    traces.requested(KEY, "judge", traces.now(), **paid, failed="limit")
    took, claim, chat, challenger, opinion = spans
    assert (claim.parent, chat.parent) == (took.ref, took.ref)
    assert challenger.parent == chat.ref
    assert challenger.attributes["interlatent.claim.role"] == "challenger"
    assert (opinion.parent, opinion.failed) == (claim.ref, "limit")
    assert chat.name == "chat small"
    wanted = {
        "gen_ai.provider.name": "openai",
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 20,
        "interlatent.requests": 2,
        "interlatent.cost_usd": 0.25,
    }
    assert wanted.items() <= chat.attributes.items()
    assert len({span.ref for span in spans}) == len(spans)
    assert len({span.ref.trace_id for span in spans}) == 1


def test_off_nothing_is_emitted_and_no_clock_is_read():
    def never(*_):
        raise AssertionError("off")

    traces = ClaimTraces(0, never, never)
    for batch in episodes(2):
        traces.rows.arrived(batch.boot_id, batch.steps)
        traces.taken(batch)
    traces.published([document()], traces.now())
    traces.requested(KEY, "word", 0, model="a:b", usage=Usage(1, 1, 1), dollars=0.0)
