"""A person's claims from end to end: each service a process of its own, each word over a socket."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from interlatent_live.client import ConsoleClient, ConsoleError
from tests.support.system import D_IN, HOOK, System, save, transcoder

EPISODE = 100
SIGNAL = 8.0
GRAIN = 0.5


class Leaner:
    """An agent whose first input follows its metric ``phase``, so that features are thresholds.

    Until ``fine`` is set the phase moves in steps of .5, so that a rule made from it meanwhile has
    its bound in the middle of such a step, and not where it is.
    """

    def __init__(self, tap):
        self.fine = threading.Event()
        self._tap = tap
        self._random = np.random.default_rng(0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._lean)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join()

    def _lean(self):
        phase, t, due = 0.0, 0, time.perf_counter()
        while not self._stop.is_set():
            phase = 0.9 * phase + 0.4 * self._random.normal()
            shown = phase if self.fine.is_set() else round(phase / GRAIN) * GRAIN
            x = np.zeros(D_IN, np.float32)
            x[0] = SIGNAL * shown
            last = t == EPISODE - 1
            self._tap.publish([shown, 0.0], x={HOOK: x}, y={HOOK: x}, terminated=last)
            t = 0 if last else t + 1
            due += 1 / 1000
            time.sleep(max(0.0, due - time.perf_counter()))


def bound(feature):
    """The phase above which a feature is on; 0 where it is on below one."""
    weight = float(transcoder().W_enc[0, feature])
    return 3.0 / (SIGNAL * weight) if weight > 0 else 0.0


def is_found_roughly(feature):
    """Whether the middle of the step that a feature's bound is in is far from the bound."""
    middle = (np.floor(bound(feature) / GRAIN) + 0.5) * GRAIN
    return 0.3 < bound(feature) < 1.4 and abs(bound(feature) - middle) > 0.08


def wait(condition, timeout_s=150.0):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError("not in time")


@pytest.fixture
def system(tmp_path):
    save(tmp_path / "transcoders", transcoder())
    with System(**{"encoder.transcoders": [str(tmp_path / "transcoders")]}) as running:
        yield running


def test_a_claim_is_refused_or_judged_and_replaces_the_machine_s_where_it_is_better(system):
    with (
        ConsoleClient.of(system.settings) as console,
        system.tap() as tap,
        Leaner(tap) as agent,
    ):
        run_id = tap.run_id

        def newest(claim_id):
            return console.claim(claim_id).text

        def verified():
            found = console.claims(run_id=run_id, verdict="verified")
            return [one for one in found if is_found_roughly(one.feature)]

        wait(lambda: list(console.claims(run_id=run_id)))
        agent.fine.set()
        machine = wait(verified)[0]
        assert machine.text.writer == "built-in (no LLM)"
        said = {
            "run_id": run_id,
            "hook_point": HOOK,
            "feature": machine.feature,
            "person": "ada",
        }
        with pytest.raises(ConsoleError) as refused:
            console.add_claim(predicate="phase >> 0", **said)
        assert refused.value.status == 422
        assert refused.value.position == 7
        with pytest.raises(ConsoleError, match="was never on in the steps"):
            console.add_claim(predicate="phase > 0", **said | {"feature": 31_000})

        console.add_claim(predicate="phase < 0", label="the wrong way round", **said)
        wrong = wait(lambda: judged(newest(machine.id).challenger))
        assert wrong.verdict in {"weak", "contradicted"}
        assert wrong.reason
        assert newest(machine.id).writer == "built-in (no LLM)", "what stood goes on standing"

        truth = f"phase > {bound(machine.feature):.17g}"
        made = console.add_claim(predicate=truth, label="leaning", **said)
        assert made.verdict == "pending"
        mine = wait(lambda: settled(newest(machine.id), made))
        assert mine.verdict == "verified", mine.reason
        assert mine.balanced_accuracy > 0.999
        stands = newest(machine.id)
        assert (stands.label, stands.writer) == ("leaning", "person:ada")
        assert (stands.version, stands.created_ns) == (made.version, made.created_ns)

        kept = console.correct(machine.id, "accept", person="grace", note="seen it")
        assert kept.verdict == "verified"
        history = console.history(machine.id)
        assert [one.person for one in history.corrections] == ["grace"]
        writers = [one.writer for one in history.versions]
        assert writers == ["built-in (no LLM)", "person:ada", "person:ada"]
        assert {one.version for one in history.verdicts} >= {0, made.version}

        (incident,) = console.incidents(run_id, 30, window=20).items
        assert (incident.episode, incident.steps, incident.window_steps) == (30, EPISODE, 20)
        assert incident.reference_episodes > 30
        with pytest.raises(ConsoleError, match="episode 99999999 of copy 0 is not among"):
            console.incidents(run_id, 99_999_999)


def judged(text):
    """The text, once a verdict other than pending was passed on it."""
    return text if text is not None and text.verdict != "pending" else None


def settled(standing, made):
    """The text that was made, wherever it is, once it is judged."""
    for text in (standing, standing.challenger):
        if text is not None and text.created_ns == made.created_ns:
            return judged(text)
    return None
