"""The Python client of a correlator's statistics: one method a question, typed answers.

    with StatisticsClient("tcp://127.0.0.1:28417") as ask:
        for item in ask.pages(Features(live=True)):
            print(item.address, item.density)
        ask.profile(feature=17).metrics

Synchronous, and not thread-safe: a socket belongs to one thread. A question that nobody answers in
time is a :class:`UserError` that names the endpoint; an answer that comes later is thrown away.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import numpy as np
import zmq

from interlatent_live.closing import Closing
from interlatent_live.errors import UserError, WireError
from interlatent_live.queries import messages as m
from interlatent_live.queries.codec import decode_reply, encode_request
from interlatent_live.wire.sockets import connect_dealer, receive_message, send_message

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from interlatent_live.wire.keys import ClientKeys

A = TypeVar("A")

BUSY_PAUSE_S: Final = 0.05
TABLE_FEATURES: Final = 2048
"""Features asked for at once in an export."""


class StatisticsClient(Closing):
    """Asks one correlator.

    Args:
        endpoint: ``endpoints.correlator_queries`` of the correlator.
        keys: a viewer's key, where the correlator is beyond this machine.
        timeout_s: longest that a question may take.

    Raises:
        UserError: when the endpoint is beyond this machine and there are no keys.
    """

    def __init__(
        self, endpoint: str, *, keys: ClientKeys | None = None, timeout_s: float = 10.0
    ) -> None:
        self.endpoint = endpoint
        self._timeout_s = timeout_s
        self._number = 0
        self._context = zmq.Context()
        try:
            self._socket = connect_dealer(self._context, endpoint, keys=keys)
        except BaseException:
            self._context.term()
            raise

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        self._context.term()

    def ask(self, question: m.AnyQuestion) -> m.AnyAnswer:
        """The answer to any question.

        Raises:
            UserError: when nobody answers in time, or the correlator refuses the question.
        """
        return self.ask_with_arrays(question)[0]

    def ask_with_arrays(
        self, question: m.AnyQuestion
    ) -> tuple[m.AnyAnswer, dict[str, NDArray[Any]]]:
        """The same, with the answer's raw columns."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            reply, arrays = self._exchange(question, deadline)
            if reply.refused != "busy" or time.monotonic() + BUSY_PAUSE_S > deadline:
                break
            time.sleep(BUSY_PAUSE_S)
        if reply.answer is None:
            raise UserError(reply.error or f"{self.endpoint} has no answer")
        return reply.answer, arrays

    def pages(self, question: Any) -> Iterator[Any]:
        """Every item of a question that has pages, page by page."""
        while True:
            answer: Any = self.ask(question)
            yield from answer.items
            if answer.next_cursor is None:
                return
            question = msgspec.structs.replace(question, cursor=answer.next_cursor)

    def runs(self, **fields: Any) -> m.RunsAnswer:
        """Runs, newest first."""
        return self._typed(m.Runs(**fields), m.RunsAnswer)

    def hook_points(self, **fields: Any) -> m.HookPointsAnswer:
        """Hook points of a run."""
        return self._typed(m.HookPoints(**fields), m.HookPointsAnswer)

    def features(self, **fields: Any) -> m.FeaturesAnswer:
        """Features, filtered and sorted."""
        return self._typed(m.Features(**fields), m.FeaturesAnswer)

    def pairs(self, **fields: Any) -> m.PairsAnswer:
        """Feature × metric pairs, filtered and sorted."""
        return self._typed(m.Pairs(**fields), m.PairsAnswer)

    def profile(self, feature: int, **fields: Any) -> m.ProfileAnswer:
        """All that is known of a feature."""
        return self._typed(m.Profile(feature=feature, **fields), m.ProfileAnswer)

    def metric(self, metric: str, **fields: Any) -> m.MetricAnswer:
        """A metric and the features that go with it."""
        return self._typed(m.MetricView(metric=metric, **fields), m.MetricAnswer)

    def screening(self, **fields: Any) -> m.FindingsAnswer:
        """The screening list."""
        return self._typed(m.Screening(**fields), m.FindingsAnswer)

    def discoveries(self, **fields: Any) -> m.FindingsAnswer:
        """Discoveries."""
        return self._typed(m.Discoveries(**fields), m.FindingsAnswer)

    def alerts(self, **fields: Any) -> m.AlertsAnswer:
        """Alerts, drift and conformal alarms of a run."""
        return self._typed(m.Alerts(**fields), m.AlertsAnswer)

    def slices(self, **fields: Any) -> m.SlicesAnswer:
        """Windows and slices."""
        return self._typed(m.Slices(**fields), m.SlicesAnswer)

    def compare(self, **fields: Any) -> m.CompareAnswer:
        """What changed between two states, windows or slices."""
        return self._typed(m.Compare(**fields), m.CompareAnswer)

    def columns(
        self, *, run: str = "", hook_point: str = "", window: str = "all"
    ) -> dict[str, Any]:
        """All numbers of all features as flat columns of an export; NaN where undefined."""
        from interlatent_live.statistics.export import from_arrays  # noqa: PLC0415 - SciPy behind

        first, parts, answer = 0, [], None
        while answer is None or first < answer.source.n_features:
            question = m.Table(
                run=run, hook_point=hook_point, window=window, first=first, count=TABLE_FEATURES
            )
            found, arrays = self.ask_with_arrays(question)
            answer = _of(found, m.TableAnswer)
            # The newest run may change between two parts of one table.
            run, hook_point = answer.source.run_id, answer.source.hook_point
            parts.append(from_arrays(arrays, answer.reasons, _specs(answer), window))
            first += answer.count
        return {
            name: np.concatenate([part[name] for part in parts])
            if isinstance(parts[0][name], np.ndarray)
            else [value for part in parts for value in part[name]]
            for name in parts[0]
        }

    def to_parquet(self, path: Path, **fields: Any) -> int:
        """Write a table as Parquet; returns its rows. Needs pyarrow."""
        from interlatent_live.statistics.export import columns_to_parquet  # noqa: PLC0415

        return columns_to_parquet(self.columns(**fields), path)

    def to_pandas(self, **fields: Any) -> Any:
        """A table as a pandas DataFrame. Needs pandas."""
        from interlatent_live.statistics.export import columns_to_pandas  # noqa: PLC0415

        return columns_to_pandas(self.columns(**fields))

    def to_polars(self, **fields: Any) -> Any:
        """A table as a Polars DataFrame. Needs polars."""
        from interlatent_live.statistics.export import columns_to_polars  # noqa: PLC0415

        return columns_to_polars(self.columns(**fields))

    def _typed(self, question: m.AnyQuestion, kind: type[A]) -> A:
        return _of(self.ask(question), kind)

    def _exchange(
        self, question: m.AnyQuestion, deadline: float
    ) -> tuple[m.Reply, dict[str, NDArray[Any]]]:
        self._number += 1
        sent = send_message(self._socket, encode_request(self._number, question))
        while sent and (wait := deadline - time.monotonic()) > 0:
            if not self._socket.poll(max(1, int(wait * 1000))):
                break
            frames = receive_message(self._socket)
            if frames is None:
                continue
            try:
                reply, arrays = decode_reply(frames)
            except WireError as error:
                raise UserError(
                    f"{self.endpoint} is not a correlator of this version: {error}"
                ) from error
            if reply.id == self._number:
                return reply, arrays
        raise UserError(
            f"no correlator answered at {self.endpoint} within {self._timeout_s:g} s; start one, "
            "or name its endpoints.correlator_queries"
        )


def _of(answer: object, kind: type[A]) -> A:
    if not isinstance(answer, kind):
        raise UserError(f"the correlator gave a {type(answer).__name__}, not a {kind.__name__}")
    return answer


def _specs(answer: m.TableAnswer) -> list[Any]:
    from interlatent_live.stream import MetricSpec, Role  # noqa: PLC0415 - only for exports

    return [MetricSpec(one.name, one.unit, Role(one.role)) for one in answer.metrics]
