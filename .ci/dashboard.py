"""Writes the Grafana dashboard: what is on it, without Grafana's verbosity.

Run it after a change; a test holds the file to this list, and every metric in it to what real
services export.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "deploy" / "grafana" / "interlatent-live.json"
SOURCE: Final = {"type": "prometheus", "uid": "${source}"}
OF_AGENT: Final = 'agent=~"$agent"'
JOB: Final = 'job="interlatent-live"'


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel: its title, what it means, its queries as (expression, legend), and how it looks."""

    title: str
    about: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    thresholds: tuple[tuple[float, str], ...] = ()


ROWS: Final[tuple[tuple[str, tuple[Panel, ...]], ...]] = (
    (
        "At a glance",
        (
            Panel(
                "Services that take work",
                "Of those that are scraped.",
                ((f"sum(interlatent_ready{{{JOB}}})", ""),),
                kind="stat",
                width=4,
            ),
            Panel(
                "Agents acting",
                "Agents from which steps came in the last minute.",
                (("count(agent:interlatent_steps_received:rate1m > 0) or vector(0)", ""),),
                kind="stat",
                width=4,
            ),
            Panel(
                "Steps a second",
                "Received from all agents.",
                (("sum(agent:interlatent_steps_received:rate1m)", ""),),
                kind="stat",
                width=4,
            ),
            Panel(
                "Steps lost",
                "Share of the last five minutes, declared or not, of the agent that lost most.",
                (("max(agent:interlatent_steps_lost:ratio5m)", ""),),
                "percentunit",
                "stat",
                4,
                ((0.0001, "yellow"), (0.01, "red")),
            ),
            Panel(
                "Step to feature, 99 of 100",
                "Of the slowest agent, over five minutes.",
                (("max(agent:interlatent_step_to_feature_seconds:p99_5m)", ""),),
                "s",
                "stat",
                4,
                ((0.1, "yellow"), (0.25, "red")),
            ),
            Panel(
                "Alert rules firing",
                "Rules about features and metrics that fire at a hook point now.",
                (('sum(interlatent_alerts{phase="firing"}) or vector(0)', ""),),
                kind="stat",
                width=4,
                thresholds=((1, "red"),),
            ),
        ),
    ),
    (
        "The live path",
        (
            Panel(
                "Steps a second by agent",
                "Received by the encoder.",
                ((f"agent:interlatent_steps_received:rate1m{{{OF_AGENT}}}", "{{agent}}"),),
                "ops",
            ),
            Panel(
                "Steps lost a second",
                "By reason; undeclared must stay at nought.",
                (
                    (
                        (
                            "sum by (agent, reason) "
                            f"(rate(interlatent_steps_lost_total{{{OF_AGENT}}}[5m]))"
                        ),
                        "{{agent}} {{reason}}",
                    ),
                ),
                "ops",
            ),
            Panel(
                "Step to feature",
                "Median and 99th of 100, from the agent's step to its features.",
                (
                    (
                        f"agent:interlatent_step_to_feature_seconds:p50_5m{{{OF_AGENT}}}",
                        "{{agent}} p50",
                    ),
                    (
                        f"agent:interlatent_step_to_feature_seconds:p99_5m{{{OF_AGENT}}}",
                        "{{agent}} p99",
                    ),
                ),
                "s",
            ),
            Panel(
                "Where the time goes in the encoder",
                "99th of 100 of each stage of a message.",
                (
                    (
                        (
                            "histogram_quantile(0.99, sum by (stage, le) "
                            "(rate(interlatent_encoder_stage_seconds_bucket[5m])))"
                        ),
                        "{{stage}}",
                    ),
                ),
                "s",
            ),
            Panel(
                "Features waiting for consumers",
                "Bytes without credit, beside the limit of all consumers together.",
                (
                    ("interlatent_consumer_queue_bytes", "consumer {{consumer}}"),
                    (
                        'interlatent_buffer_limit_bytes{buffer="features not yet acknowledged"}',
                        "limit",
                    ),
                ),
                "bytes",
            ),
            Panel(
                "Runs and versions",
                "Runs that ended without a goodbye; transcoder versions taken up or refused.",
                (
                    ("interlatent_runs_vanished_total", "runs vanished"),
                    ("interlatent_transcoder_versions_total", "versions {{result}}"),
                ),
            ),
        ),
    ),
    (
        "Features and claims",
        (
            Panel(
                "Variance unexplained",
                "On the live stream; towards 1 the transcoder no longer fits what the agent does.",
                ((f"interlatent_fvu_ratio{{{OF_AGENT}}}", "{{agent}} {{hook_point}}"),),
                "percentunit",
                thresholds=((0.5, "red"),),
            ),
            Panel(
                "Claims by verdict",
                "Of all runs that the explainer keeps.",
                (("sum by (verdict) (interlatent_claims)", "{{verdict}}"),),
            ),
            Panel(
                "Alert rules by phase",
                "Hook points by rule and phase.",
                (("sum by (rule, phase) (interlatent_alerts)", "{{rule}} {{phase}}"),),
            ),
            Panel(
                "Values that rules speak of",
                "At their last evaluation.",
                (("interlatent_value", "{{hook_point}} {{name}}"),),
            ),
            Panel(
                "Rows in the statistics",
                "And rows that came before a restart and are in no snapshot.",
                (
                    ("interlatent_statistics_rows", "kept"),
                    ("interlatent_rows_missing", "missing"),
                ),
            ),
            Panel(
                "Slowest question",
                "Longest answer of the correlator since its start.",
                (("interlatent_query_slowest_seconds", "slowest"),),
                "s",
            ),
        ),
    ),
    (
        "The language model",
        (
            Panel(
                "Spent and allowed",
                "US dollars since the start.",
                (
                    ("interlatent_writer_dollars_total", "spent"),
                    ("interlatent_writer_dollars_limit", "limit"),
                ),
                "currencyUSD",
            ),
            Panel(
                "Requests a minute",
                "Sent, and not sent by reason.",
                (
                    ("60 * rate(interlatent_writer_requests_total[5m])", "sent"),
                    ("60 * rate(interlatent_writer_refused_total[5m])", "{{reason}}"),
                ),
            ),
            Panel(
                "Tokens a minute",
                "By direction.",
                (("60 * rate(interlatent_writer_tokens_total[5m])", "{{direction}}"),),
            ),
        ),
    ),
    (
        "Services",
        (
            Panel(
                "Processor",
                "Cores in use.",
                ((f"rate(process_cpu_seconds_total{{{JOB}}}[1m])", "{{service}}"),),
            ),
            Panel(
                "Memory",
                "Resident.",
                ((f"process_resident_memory_bytes{{{JOB}}}", "{{service}}"),),
                "bytes",
            ),
            Panel(
                "File descriptors",
                "Open, as a share of what is allowed.",
                ((f"process_open_fds{{{JOB}}} / process_max_fds{{{JOB}}}", "{{service}}"),),
                "percentunit",
            ),
            Panel(
                "The console's answers",
                "99th of 100 by route.",
                (
                    (
                        (
                            "histogram_quantile(0.99, sum by (route, le) "
                            "(rate(interlatent_http_request_seconds_bucket[5m])))"
                        ),
                        "{{route}}",
                    ),
                ),
                "s",
            ),
            Panel(
                "Who watches",
                "Open feeds and sockets.",
                (
                    ("interlatent_http_feeds", "{{client}}"),
                    ("interlatent_http_sockets", "{{route}}"),
                ),
            ),
            Panel(
                "Deliveries of alerts",
                "By receiver and result; what waits.",
                (
                    (
                        "rate(interlatent_alert_deliveries_total[5m])",
                        "{{receiver}} {{result}}",
                    ),
                    ("interlatent_alert_deliveries_waiting", "{{receiver}} waiting"),
                ),
            ),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard in Grafana's own words (schema 39, Grafana 10 and later)."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS:
        panels.append(_placed({"type": "row", "title": title, "collapsed": False}, 0, top, 24, 1))
        top += 1
        left = height = 0
        for panel in row:
            if left + panel.width > 24:
                left, top = 0, top + height
            height = 4 if panel.kind == "stat" else 8
            panels.append(_placed(_panel(panel), left, top, panel.width, height))
            left += panel.width
        top += height
    for number, one in enumerate(panels, start=1):
        one["id"] = number
    return {
        "uid": "interlatent-live",
        "title": "interlatent-live",
        "description": "What agents do and what the system that watches them costs and loses.",
        "tags": ["interlatent-live"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "Source", "type": "datasource", "query": "prometheus"},
                {
                    "name": "agent",
                    "label": "Agent",
                    "type": "query",
                    "datasource": SOURCE,
                    "query": "label_values(interlatent_steps_received_total, agent)",
                    "refresh": 2,
                    "multi": True,
                    "includeAll": True,
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": panels,
    }


def _placed(panel: dict[str, Any], x: int, y: int, w: int, h: int) -> dict[str, Any]:
    return {**panel, "gridPos": {"x": x, "y": y, "w": w, "h": h}}


def _panel(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    steps += [{"color": color, "value": value} for value, color in panel.thresholds]
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.thresholds:
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    out: dict[str, Any] = {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + at), "expr": expression, "legendFormat": legend}
            for at, (expression, legend) in enumerate(panel.queries)
        ],
    }
    if panel.kind == "timeseries":
        out["options"] = {
            "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    else:
        out["options"] = {"colorMode": "value", "reduceOptions": {"calcs": ["lastNotNull"]}}
    return out


def text() -> str:
    """The file's text."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the file."""
    OUT.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
