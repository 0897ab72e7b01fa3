"""The typed Python client of a running system: the console's HTTP API and its feeds.

    from interlatent_live.client import ConsoleClient

    with ConsoleClient("http://127.0.0.1:28480") as console:
        for claim in console.claims(verdict="verified"):
            print(claim.address, claim.text.label)
        for event in console.feed(topics=("narration",)):
            print(event)

Everything is synchronous and typed, feeds go on where they broke off, and whatever goes wrong is a
:class:`ConsoleError` with one sentence.
"""

from interlatent_live.client.api import ConsoleClient
from interlatent_live.client.errors import ConsoleError
from interlatent_live.client.feeds import FeedDocument, FeedItem, Missed, zeromq_feed
from interlatent_live.client.values import (
    Claim,
    ClaimText,
    Correction,
    Cost,
    History,
    Incident,
    Incidents,
    MadeClaim,
    Narrated,
    PastCase,
    Recent,
    Run,
    SecondOpinion,
    Spent,
    UnusualFeature,
    VerdictPassed,
    Version,
    Why,
    WhyAblation,
    WhyClaim,
    WhyEdge,
    WhyTerm,
)

__all__ = [
    "Claim",
    "ClaimText",
    "ConsoleClient",
    "ConsoleError",
    "Correction",
    "Cost",
    "FeedDocument",
    "FeedItem",
    "History",
    "Incident",
    "Incidents",
    "MadeClaim",
    "Missed",
    "Narrated",
    "PastCase",
    "Recent",
    "Run",
    "SecondOpinion",
    "Spent",
    "UnusualFeature",
    "VerdictPassed",
    "Version",
    "Why",
    "WhyAblation",
    "WhyClaim",
    "WhyEdge",
    "WhyTerm",
    "zeromq_feed",
]
