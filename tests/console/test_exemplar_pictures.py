"""Pictures of exemplars: the nearest of the same copy and episode, in bounded bytes."""

import threading

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.console.exemplar_pictures import (
    ASK_EVERY_S,
    MOST_BOOTS,
    NEAR_STEPS,
    Chooser,
    ExemplarPictures,
    router,
)
from interlatent_live.errors import UserError
from interlatent_live.queries.messages import ExemplarsAnswer

RUN = "run"
JPEG = b"\xff\xd8\xff\xe0 a picture"


def answer(copies=1, run=RUN, **boots):
    return ExemplarsAnswer(run_id=run, copies=copies, boots=boots or {"boot": 0})


def rows(*each):
    """Rows as (position, env, t, after)."""
    table = np.array(sorted(each), np.int64).reshape(-1, 4)
    return {name: table[:, i] for i, name in enumerate(("position", "env", "t", "after"))}


def kept(*seqs, most_bytes=1 << 20, env=0, boot="boot", run=RUN):
    pictures = ExemplarPictures(most_bytes)
    for seq in seqs:
        pictures.offer(run, boot, env, seq, JPEG + bytes([seq % 251]))
    return pictures


def steps_of(pictures, position, run=RUN):
    found = pictures.find(run, position)
    return None if found is None else found[0].steps


def test_the_nearest_picture_is_kept_and_says_how_far_it_is():
    pictures = kept(100, 125, 150)
    pictures.choose(
        answer(), rows((103, 0, 50, 8), (122, 0, 69, 8), (125, 0, 72, 8), (112, 0, 9, 0))
    )
    assert steps_of(pictures, 103) == 3
    assert steps_of(pictures, 122) == -3
    assert steps_of(pictures, 125) == 0
    assert steps_of(pictures, 112) is None, "12 steps before, and the episode is 9 steps old"
    assert pictures.find(RUN, 122)[1] == JPEG + bytes([125])
    assert pictures.find("another", 103) is None


def test_a_picture_of_another_episode_or_copy_is_no_picture_of_the_moment():
    pictures = kept(100)
    pictures.choose(answer(), rows((102, 0, 1, 0), (98, 0, 40, 1), (99, 0, 41, 1), (101, 1, 9, 9)))
    assert steps_of(pictures, 102) is None, "its episode began after the picture"
    assert steps_of(pictures, 98) is None, "what follows by two steps is not known"
    assert steps_of(pictures, 99) == -1
    assert steps_of(pictures, 101) is None, "of another copy"


def test_copies_step_together_and_a_second_life_counts_on():
    pictures = kept(40, env=2, boot="second")
    moments = [(1000 + seq, 2, 30, 8) for seq in (42, 38, 50)]
    pictures.choose(answer(4, first=0, second=1000), rows(*moments))
    # The picture before row 40 shows what row 42, the next one of copy 2, is of.
    assert [steps_of(pictures, position) for position, *_ in moments] == [0, -1, 2]


@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=30),
    st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 30), st.integers(0, 8)), max_size=20,
        unique_by=lambda one: one[0],
    ),
)  # fmt: skip
def test_no_nearer_picture_of_the_episode_is_passed_over(made, moments):
    pictures = kept(*made)
    pictures.choose(answer(), rows(*((p, 0, t, after) for p, t, after in moments)))
    for position, t, after in moments:
        near = [
            abs(position - seq)
            for seq in set(made)
            if -min(after, NEAR_STEPS) <= position - seq <= min(t, NEAR_STEPS)
        ]
        found = steps_of(pictures, position)
        assert (None if found is None else abs(found)) == min(near, default=None)


def test_bytes_are_bounded_and_what_was_chosen_goes_last():
    share = 20 * (len(JPEG) + 1)
    pictures = kept(*range(10), most_bytes=share)
    pictures.choose(answer(), rows((2, 0, 2, 0)))
    for seq in range(10, 500):
        pictures.offer(RUN, "boot", 0, seq, JPEG + b"x")
    assert pictures.held <= share
    assert steps_of(pictures, 2) == 0
    assert pictures.dropped == 0, "what nobody chose is not missed"
    pictures.choose(answer(), rows(*((seq, 0, 0, 0) for seq in range(480, 500))))
    assert steps_of(pictures, 2) is None
    pictures.offer(RUN, "boot", 0, 500, JPEG + b"x")
    assert pictures.held <= share
    assert pictures.dropped > 0, "those that wait keep some room"
    pictures.choose(answer(), rows((500, 0, 0, 0)))
    assert steps_of(pictures, 500) == 0
    pictures.offer(RUN, "boot", 0, 501, bytes(2 * share))
    assert pictures.held <= share


def test_agents_share_the_bytes_and_the_one_heard_longest_ago_goes():
    pictures = ExemplarPictures(1000)
    for number in range(MOST_BOOTS + 5):
        for seq in range(20):
            pictures.offer(f"run{number}", f"boot{number}", 0, seq, b"x" * 10)
    assert pictures.held <= 1000
    assert len(pictures._boots) == MOST_BOOTS
    last = MOST_BOOTS + 4
    pictures.choose(answer(run=f"run{last}", **{f"boot{last}": 0}), rows((19, 0, 0, 0)))
    assert steps_of(pictures, 19, f"run{last}") == 0


def test_a_boot_of_another_run_lends_no_pictures():
    pictures = kept(5, run="theirs")
    pictures.choose(answer(), rows((5, 0, 5, 0)))
    assert pictures.find(RUN, 5) is None


def test_the_correlator_is_asked_again_until_it_answers(monkeypatch):
    monkeypatch.setattr("interlatent_live.console.exemplar_pictures.ASK_EVERY_S", 0.001)
    assert ASK_EVERY_S > 1, "not often in earnest"
    asked = []

    class Client:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def ask_with_arrays(self, question):
            asked.append(question.run)
            if len(asked) < 3:
                raise UserError("nobody answers")
            done.set()
            return answer(), rows((5, 0, 5, 0))

    done = threading.Event()
    pictures = kept(5)
    with Chooser(pictures, Client):
        assert done.wait(30)
    assert asked[:3] == [RUN] * 3
    assert steps_of(pictures, 5) == 0


@pytest.fixture
def http():
    pictures = kept(5)
    pictures.choose(answer(), rows((5, 0, 5, 0), (7, 0, 7, 0)))
    app = FastAPI()
    app.include_router(router(pictures))
    with TestClient(app) as client:
        yield client


def test_over_http_an_image_and_nothing_else(http):
    listed = http.get("/pictures", params={"run_id": RUN, "positions": "5,7,9"}).json()
    assert listed == {"items": [{"position": 5, "steps": 0}, {"position": 7, "steps": 2}]}
    one = http.get("/pictures/7", params={"run_id": RUN})
    assert one.headers["content-type"] == "image/jpeg"
    assert one.headers["steps"] == "2"
    assert one.content == JPEG + bytes([5])
    missing = http.get("/pictures/9", params={"run_id": RUN})
    assert missing.status_code == 404
    assert "no picture near this moment" in missing.json()["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "/pictures?run_id=run&positions=../../etc/passwd",
        "/pictures?run_id=run&positions=1,,2",
        "/pictures?run_id=run&positions=" + "9" * 30,
        f"/pictures?run_id={'r' * 300}&positions=1",
        "/pictures/..%2f..%2fstore?run_id=run",
        "/pictures/5",
        "/pictures?positions=5",
    ],
)
def test_what_is_not_a_number_of_a_row_is_refused(http, path):
    assert http.get(path).status_code in {404, 422}
