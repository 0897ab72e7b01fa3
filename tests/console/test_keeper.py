"""The feed goes on whatever the store does, and what passed meanwhile is asked for."""

from __future__ import annotations

from interlatent_live.console.keeper import ASK_AGAIN_NS, Keeper
from interlatent_live.explanations.requests import Recollection, Refused
from interlatent_live.store import StoreError
from tests.support.feeds import agents_document, claim, claims_document

NOW = 10**18


class Store:
    def __init__(self):
        self.broken = False
        self.taken = []
        self.recollected = []

    def take(self, document):
        if self.broken:
            raise StoreError("the disk is full")
        self.taken.append(document)

    def recollect(self, run_id, hook_point, verdicts):
        self.recollected.append((run_id, hook_point, verdicts))


def test_a_store_that_fails_is_said_once_and_counted():
    store, said = Store(), []
    keeper = Keeper(store, said.append)
    store.broken = True
    for _ in range(3):
        keeper.take(agents_document())
    assert (keeper.not_kept, said) == (3, ["the disk is full"])
    store.broken = False
    keeper.take(agents_document())
    store.broken = True
    keeper.take(agents_document())
    assert (keeper.kept, keeper.not_kept, len(said)) == (1, 4, 2)


def test_the_explainer_is_asked_once_a_run_and_again_after_a_hole():
    keeper = Keeper(Store(), print)
    keeper.take(claims_document([claim()]))
    (request,) = keeper.requests(NOW)
    assert (request.run_id, request.hook_point) == ("run-1", "hidden.1")
    assert keeper.requests(NOW + 1) == []
    keeper.answered(Refused(request.id, "busy", "later"))
    (again,) = keeper.requests(NOW + ASK_AGAIN_NS)
    keeper.answered(Recollection("never asked", "run-1", "hidden.1", {}))
    keeper.answered(Recollection(again.id, "run-1", "hidden.1", {}))
    keeper.take(claims_document([claim()]))
    assert keeper.requests(NOW + 9 * ASK_AGAIN_NS) == []
    keeper.take(claims_document([claim()]), missed=1)
    assert len(keeper.requests(NOW + 10 * ASK_AGAIN_NS)) == 1


def test_a_run_that_the_explainer_does_not_know_is_not_asked_about_for_ever():
    keeper = Keeper(Store(), print)
    keeper.take(claims_document([claim()]))
    (request,) = keeper.requests(NOW)
    keeper.answered(Refused(request.id, "refused", "no run"))
    assert keeper.requests(NOW + 2 * ASK_AGAIN_NS) == []
