"""Requests from the console: who may ask, what is carried out, and what is asked twice."""

from __future__ import annotations

import hmac

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.errors import UserError
from interlatent_live.explanations import Explainer, ExplainerConfig
from interlatent_live.explanations.evidence import collect_evidence
from interlatent_live.explanations.planted import HOOK, Kind, Plan, plant
from interlatent_live.explanations.requests import (
    FRESH_NS,
    Accepted,
    ClaimByPerson,
    IncidentFound,
    LookBack,
    Noted,
    Recollect,
    Recollection,
    Refused,
    Reply,
    RequestDesk,
    Wording,
    carry_out,
    open_answer,
    open_request,
    seal,
)

KEY = b"k" * 32
NOW = 10**18


def by_person(**changes):
    values = {
        "id": "r1",
        "sent_ns": NOW,
        "run_id": "run",
        "hook_point": HOOK,
        "feature": 0,
        "predicate": "m0 > 0",
        "person": "ada",
    }
    return ClaimByPerson(**(values | changes))


# ------------------------------------------------------------------------------------- the desk


def test_a_request_is_handed_out_once_and_its_answer_is_repeated():
    desk = RequestDesk(KEY)
    frames = seal(KEY, by_person())
    assert desk.receive(b"a", frames, NOW) == by_person()
    assert desk.receive(b"b", frames, NOW) is None  # asked again while it is being carried out
    answer = Refused("r1", "unknown", "no")
    reply = desk.finish(answer, NOW)
    assert reply.peer == b"b"  # the newest connection gets it
    assert open_answer(KEY, reply.frames) == answer
    again = desk.receive(b"c", frames, NOW + FRESH_NS // 2)
    assert isinstance(again, Reply)
    assert open_answer(KEY, again.frames) == answer
    assert desk.finish(answer, NOW) is None


def test_without_the_key_nothing_is_answered_and_it_is_counted():
    desk = RequestDesk(KEY)
    signature, body = seal(b"x" * 32, by_person())
    assert desk.receive(b"a", [signature, body], NOW) is None
    _, mine = seal(KEY, by_person())
    assert desk.receive(b"a", [signature, mine], NOW) is None
    assert desk.receive(b"a", [mine], NOW) is None
    answer = seal(KEY, Refused("r1", "unknown", "no"))  # an answer sent back as a request
    assert desk.receive(b"a", answer, NOW) is None
    assert desk.refused == {"signature": 4}
    with pytest.raises(ValueError, match="key"):
        RequestDesk(b"")


def test_an_old_request_is_not_carried_out_even_when_it_was_forgotten():
    desk = RequestDesk(KEY)
    frames = seal(KEY, by_person())
    desk.receive(b"a", frames, NOW)
    desk.finish(Refused("r1", "unknown", "no"), NOW)
    late = desk.receive(b"a", frames, NOW + 3 * FRESH_NS)
    assert open_answer(KEY, late.frames).why == "stale"


def test_what_is_under_way_and_what_is_remembered_is_bounded():
    desk = RequestDesk(KEY, waiting=3, remembered=4)
    taken = [desk.receive(b"a", seal(KEY, by_person(id=str(i))), NOW) for i in range(5)]
    assert [isinstance(one, ClaimByPerson) for one in taken] == [True] * 3 + [False] * 2
    assert open_answer(KEY, taken[4].frames).why == "busy"
    for i in range(3):
        desk.finish(Refused(str(i), "unknown", ""), NOW)
    desk.receive(b"a", seal(KEY, by_person(id="5")), NOW)
    desk.finish(Refused("5", "unknown", ""), NOW)
    full = desk.receive(b"a", seal(KEY, by_person(id="6")), NOW)
    assert open_answer(KEY, full.frames).why == "busy"
    later = NOW + 3 * FRESH_NS
    assert desk.receive(b"a", seal(KEY, by_person(id="7", sent_ns=later)), later).id == "7"


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_garbage_is_never_a_request(first, second):
    assert open_request(KEY, [first, second]) is None
    assert open_answer(KEY, [first, second]) is None


def test_a_signed_body_that_fits_no_schema_is_refused():
    for body in (b"{}", b'{"type":"claim"}', b"[", b'{"type":"claim","id":1}'):
        assert open_request(KEY, [hmac.digest(KEY, body, "sha256"), body]) is None
    huge = msgspec.json.encode(by_person(description="x" * 70_000))
    assert open_request(KEY, [hmac.digest(KEY, huge, "sha256"), huge]) is None


# ---------------------------------------------------------------------------------- carrying out


class Inquiries:
    def __init__(self, explainer):
        self.one = explainer

    def explainer(self, run_id, hook_point):
        if (run_id, hook_point) != ("run", HOOK):
            raise UserError(f"run {run_id} is not known")
        return self.one

    def adopt_by_person(self, run_id, hook_point, feature, draft):
        return self.one.adopt(feature, draft, NOW)

    def word_first(self, run_id, hook_point, feature):
        if feature != 1:
            raise UserError("was worded")


@pytest.fixture(scope="module")
def stream():
    plan = Plan(per_kind=4, episodes=16, steps=400, metrics=3, kinds=(Kind.THRESHOLD,), seed=4)
    return plant(plan)


@pytest.fixture
def inquiries(stream):
    explainer = Explainer(stream.specs, HOOK, config=ExplainerConfig(null_draws=99))
    evidence = collect_evidence(stream.batches, stream.specs, HOOK)
    explainer.propose(evidence.select(np.arange(evidence.n_units) < 8), NOW)
    for batch in stream.batches:
        explainer.observe(batch)
    return Inquiries(explainer)


def test_a_persons_claim_goes_through_the_gate(inquiries, stream):
    feature = inquiries.one.claims[0].address.index
    name = stream.specs[0].name
    answer = carry_out(by_person(feature=feature, predicate=f"{name}>1"), inquiries)
    assert isinstance(answer, Accepted)
    assert (answer.version, answer.verdict) == (1, "pending")
    assert answer.predicate == f"{name} > 1"
    assert inquiries.one.claims[0].writer == "person:ada"


def test_mistakes_are_answers_with_their_position(inquiries, stream):
    feature = inquiries.one.claims[0].address.index
    name = stream.specs[0].name
    wrong = carry_out(by_person(feature=feature, predicate=f"{name} > > 1"), inquiries)
    assert (wrong.why, wrong.position) == ("predicate", len(name) + 3)
    nobody = carry_out(by_person(feature=feature, predicate=f"{name} > 1", person=" "), inquiries)
    assert nobody.why == "refused"
    assert carry_out(by_person(run_id="other"), inquiries).message == "run other is not known"
    absent = carry_out(by_person(feature=9999, predicate=f"{name} > 1"), inquiries)
    assert (absent.why, "never on" in absent.message) == ("unknown", True)


def test_the_verdicts_that_are_remembered_are_told(inquiries):
    answer = carry_out(Recollect("r", NOW, "run", HOOK), inquiries)
    assert isinstance(answer, Recollection)
    assert set(answer.verdicts) == {str(claim.address) for claim in inquiries.one.claims}
    for events in answer.verdicts.values():
        assert events[0]["version"] == 0
        assert events[0]["at_ns"] == NOW


def test_a_wish_is_noted_or_refused(inquiries):
    assert carry_out(Wording("r", NOW, "run", HOOK, 1), inquiries) == Noted("r")
    assert carry_out(Wording("r", NOW, "run", HOOK, 2), inquiries).message == "was worded"


def test_an_incident_is_analysed_where_the_rows_are(inquiries):
    answer = carry_out(LookBack("r", NOW, "run", HOOK, env=0, episode=3, window=30), inquiries)
    assert isinstance(answer, IncidentFound)
    assert (answer.incident["episode"], answer.incident["window_steps"]) == (3, 30)
    missing = carry_out(LookBack("r", NOW, "run", HOOK, env=0, episode=99), inquiries)
    assert "episode 99 of copy 0 is not among" in missing.message
