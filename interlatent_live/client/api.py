"""The client itself: one method a route, typed answers, pages turned by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from urllib.parse import quote

import httpx2
import msgspec

from interlatent_live.client import values as v
from interlatent_live.client.errors import ConsoleError, nobody, refusal
from interlatent_live.client.feeds import Transport, feed_over
from interlatent_live.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from interlatent_live.client.feeds import FeedItem, Missed
    from interlatent_live.config import Settings

T = TypeVar("T")

PREFIX: Final = "/api/v1"
PAGE: Final = 200


class ConsoleClient(Closing):
    """Speaks to one console. Not thread-safe; make one for each thread.

    Args:
        url: of the console, such as ``http://127.0.0.1:28480``.
        token: for writing, as text or as a function that finds it when it is first needed.
        timeout_s: longest that an answer may take; the explainer may be in the midst of something.
    """

    def __init__(
        self, url: str, *, token: str | Callable[[], str] | None = None, timeout_s: float = 30.0
    ) -> None:
        self.url = url.rstrip("/")
        self._token = token
        self._http = httpx2.Client(base_url=self.url + PREFIX, timeout=timeout_s, trust_env=False)

    @classmethod
    def of(cls, settings: Settings, *, timeout_s: float = 30.0) -> Self:
        """The console of these settings, with the token of their state folder."""
        from interlatent_live.console.secrets import (  # noqa: PLC0415 - only who writes needs it
            load_token,
            state_folder,
        )

        url = f"http://{settings.console.http}"
        return cls(url, token=lambda: load_token(state_folder(settings)), timeout_s=timeout_s)

    def close(self) -> None:
        """Give connections back."""
        self._http.close()

    # -- reading -----------------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """Facts about the console."""
        return self._get("/health", dict[str, Any])

    def runs(self) -> Iterator[v.Run]:
        """Every run that is kept, by id."""
        return self._pages("/runs", v.Run)

    def run(self, run_id: str) -> v.Run:
        """One run.

        Raises:
            ConsoleError: when the console knows no such run.
        """
        return self._get(f"/runs/{quote(run_id, safe='')}", v.Run)

    def claims(
        self, *, run_id: str = "", hook_point: str = "", verdict: str = "", address: str = ""
    ) -> Iterator[v.Claim]:
        """Claims as they were last published; an empty filter means any."""
        wanted = {"run_id": run_id, "hook_point": hook_point}
        wanted |= {"verdict": verdict, "address": address}
        return self._pages("/claims", v.Claim, **wanted)

    def claim(self, claim_id: str) -> v.Claim:
        """One claim.

        Raises:
            ConsoleError: when there is none of that id.
        """
        return self._get(f"/claims/{claim_id}", v.Claim)

    def history(self, claim_id: str) -> v.History:
        """A claim's versions, verdicts and corrections.

        Raises:
            ConsoleError: when there is none of that id.
        """
        return self._get(f"/claims/{claim_id}/history", v.History)

    def narration(self, *, run_id: str = "") -> Iterator[v.Narrated]:
        """Narrated intervals, newest first."""
        return self._pages("/narration", v.Narrated, run_id=run_id)

    def costs(self) -> list[v.Spent]:
        """What each explainer process has spent, newest first."""
        return self._get("/costs", dict[str, list[v.Spent]])["items"]

    def incidents(
        self, run_id: str, episode: int, *, env: int = 0, window: int = 100, hook_point: str = ""
    ) -> v.Incidents:
        """What was unusual in the last ``window`` steps of an episode of a run that is still held.

        Raises:
            ConsoleError: when run or episode are unknown, or there is nothing to compare with.
        """
        return self._get(
            "/incidents", v.Incidents,
            run_id=run_id, episode=episode, env=env, window=window, hook_point=hook_point,
        )  # fmt: skip

    def why(
        self,
        agent: str,
        *,
        run_id: str = "",
        env: int = 0,
        episode: int | None = None,
        t: int | None = None,
        component: str = "",
    ) -> v.Why:
        """Why a copy of an agent acted as it did: the newest step its shadow observed, or this one.

        Args:
            agent: its name.
            run_id: of a run of that name; the newest unless said.
            env: the copy.
            episode: of the step; the newest unless said.
            t: the step within the episode.
            component: the part of a continuous action, or the action whose score is explained.

        Raises:
            ConsoleError: with ``why`` ``unknown`` (it has no shadow), ``cannot`` (its decisions
                cannot be taken apart), ``refused`` (that step is not held), ``busy``, ``rate`` or
                ``silent``.
        """
        place = {"episode": episode, "t": t}
        return self._get(
            f"/agents/{quote(agent, safe='')}/why", v.Why,
            run_id=run_id, env=env, component=component,
            **{name: one for name, one in place.items() if one is not None},
        )  # fmt: skip

    def feed(
        self,
        topics: tuple[str, ...] = (),
        *,
        last_id: str | None = None,
        transport: Transport = "lines",
        patience_s: float = 30.0,
    ) -> Generator[FeedItem | Missed]:
        """The feed, for as long as it is read; a broken connection is made anew and goes on.

        Args:
            topics: names of topics; none: all.
            last_id: go on behind this event; ``None`` begins with the newest word on everything.
            transport: server-sent events, JSON lines or a WebSocket; what comes is the same.
            patience_s: how long a console may stay away before that is an error.

        Raises:
            ConsoleError: when a topic or an id is refused, or the console stays away.
        """
        return feed_over(
            transport, self.url + PREFIX, topics, last_id=last_id, patience_s=patience_s
        )

    # -- writing -----------------------------------------------------------------------------------

    def add_claim(
        self,
        *,
        run_id: str,
        hook_point: str,
        feature: int,
        predicate: str,
        person: str,
        label: str = "",
        description: str = "",
        request_id: str = "",
    ) -> v.MadeClaim:
        """Say when a feature is on; later episodes judge it like any claim.

        The same ``request_id`` again is carried out once.

        Raises:
            ConsoleError: with ``position`` when the predicate does not parse, and otherwise when
                the run is not there, has ended, or nothing is known of the feature.
        """
        body = {
            "run_id": run_id, "hook_point": hook_point, "feature": feature,
            "predicate": predicate, "person": person, "label": label, "description": description,
        }  # fmt: skip
        return self._post("/claims", body, request_id, v.MadeClaim)

    def word_first(
        self, *, run_id: str, hook_point: str, feature: int, person: str, request_id: str = ""
    ) -> None:
        """Have the language model word a feature's claim before all others.

        Raises:
            ConsoleError: when no model words claims there, it was worded, or run or feature are
                not known.
        """
        body = {"run_id": run_id, "hook_point": hook_point, "feature": feature, "person": person}
        self._post("/wordings", body, request_id, dict[str, str])

    def correct(
        self,
        claim_id: str,
        kind: str,
        *,
        person: str,
        note: str = "",
        label: str = "",
        request_id: str = "",
    ) -> v.Correction:
        """Say of a claim ``accept``, ``reject``, or ``relabel`` with its new ``label``.

        Raises:
            ConsoleError: when there is no such claim, or kind and label do not fit.
        """
        body = {"claim_id": claim_id, "kind": kind, "person": person, "note": note, "label": label}
        return self._post("/corrections", body, request_id, v.Correction)

    # -- inside ------------------------------------------------------------------------------------

    def _pages(self, path: str, item: type[T], **wanted: str) -> Iterator[T]:
        cursor: str | None = ""
        while cursor is not None:
            query = wanted | ({"cursor": cursor} if cursor else {})
            page = self._get(path, dict[str, Any], limit=PAGE, **query)
            yield from msgspec.convert(page["items"], list[item])  # type: ignore[valid-type]
            cursor = page["next_cursor"]

    def _get(self, path: str, answer: type[T], **query: str | int) -> T:
        return self._ask(lambda: self._http.get(path, params=query), answer)

    def _post(self, path: str, body: dict[str, Any], request_id: str, answer: type[T]) -> T:
        token = self._token() if callable(self._token) else self._token
        if not token:
            raise ConsoleError("writing needs the token of the console; hand it to ConsoleClient")
        if request_id:
            body |= {"id": request_id}
        headers = {"Authorization": f"Bearer {token}"}
        return self._ask(lambda: self._http.post(path, json=body, headers=headers), answer)

    def _ask(self, send: Callable[[], httpx2.Response], answer: type[T]) -> T:
        try:
            found = send()
        except httpx2.TimeoutException as error:
            raise ConsoleError(f"the console at {self.url} did not answer in time") from error
        except httpx2.TransportError as error:
            raise nobody(self.url) from error
        if not found.is_success:
            raise refusal(found.status_code, found.content)
        try:
            return msgspec.json.decode(found.content, type=answer)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ConsoleError(
                f"what answers at {self.url} is no console of this version: {error}"
            ) from error
