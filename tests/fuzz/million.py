"""A million mutated messages against the decoder, and what became of them, as one JSON object.

The process that runs this is the one that may crash: a test starts it and reads its report.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections import Counter

from interlatent_live.errors import WireError
from interlatent_live.wire.clock import Now
from interlatent_live.wire.codec import decode, encode
from interlatent_live.wire.limits import Limits
from interlatent_live.wire.receiver_link import ReceiverHub
from tests.support.wire_mutations import Mutator

LIMITS = Limits(body_bytes=1 << 20, document_bytes=1 << 16)


def rss_kib() -> int:
    """The largest memory this process ever had, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Mutate, decode, count; anything but a message or a WireError ends the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    mutator = Mutator(options.seed)
    hub = ReceiverHub()
    outcomes: Counter[str] = Counter()
    begun = time.perf_counter()
    baseline = 0
    for number in range(options.messages):
        frames = mutator.message()
        try:
            message = decode(frames, LIMITS)
        except WireError as error:
            outcomes[error.reason] += 1
            hub.on_garbage(Now(number / 1000, 0), b"fuzzer", error)
        else:
            outcomes["accepted"] += 1
            # What is accepted must be sayable again, and harmless to a receiver.
            encode(message)
            hub.on_message(Now(number / 1000, 0), b"fuzzer", message, size=1)
            hub.on_tick(Now(number / 1000, 0))
        if number == options.messages // 10:
            # By now every cache is full.
            baseline = rss_kib()
    report = {
        "messages": options.messages,
        "seconds": round(time.perf_counter() - begun, 1),
        "outcomes": dict(outcomes.most_common()),
        "refusals_counted_by_the_hub": sum(hub.counters.refusals.values()),
        "rss_after_a_tenth_kib": baseline,
        "rss_at_the_end_kib": rss_kib(),
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
