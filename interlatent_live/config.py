"""The one configuration: a TOML file, ``INTERLATENT_*`` in the environment, flags on top.

Every value knows where it came from, every key that nobody knows is refused by name, and what is
refused is said in one sentence. A :class:`Settings` is frozen; :meth:`Settings.environment` hands
the very same values to a child process, whatever files lie around there.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import socket
import tomllib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict

from interlatent_live.errors import UserError
from interlatent_live.logs import LogFormat, LogLevel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic_settings import PydanticBaseSettingsSource

CONFIG_FILE: Final = "interlatent.toml"
CONFIG_VARIABLE: Final = "INTERLATENT_CONFIG"
"""Names the file to read instead of ``interlatent.toml``; set but empty, no file is read."""
PREFIX: Final = "INTERLATENT_"
DELIMITER: Final = "__"
NONE: Final = "none"
KIBI: Final = 1024
MEBI: Final = 1024 * KIBI
CONTROL_REQUESTS: Final = 256
"""Commands that may be on their way at once."""

TRACED: Final = frozenset({"encoder", "correlator", "explainer"})
"""Services that say what they do with a step."""

ServiceName = Literal["encoder", "correlator", "explainer", "console", "control", "recorder"]

# ------------------------------------------------------------------------------------ addresses


def _endpoint(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme == "ipc" and (parts.netloc or parts.path):
        return text
    if parts.scheme == "tcp":
        host, port = split_address(parts.netloc)
        if host and 0 < port < 2**16 and not parts.path:
            return text
    raise ValueError("must look like tcp://HOST:PORT or ipc:///PATH")


def _address(text: str) -> str:
    host, port = split_address(text)
    if host and 0 <= port < 2**16:
        return text
    raise ValueError("must look like HOST:PORT")


def split_address(text: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[IPV6]:PORT`` in parts; ``("", -1)`` when it is neither."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    if not colon or not bare or not port.isascii() or not port.isdecimal():
        return "", -1
    return ("", -1) if ":" in bare and not bracketed else (bare, int(port))


def is_loopback(host: str) -> bool:
    """Whether an address names this machine only; any other name than ``localhost`` does not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _device(text: str) -> str:
    kind, _, number = text.partition(":")
    if text in {"auto", "cpu", "cuda"} or (kind == "cuda" and number.isdecimal()):
        return text
    raise ValueError("must be auto, cpu, cuda or cuda:N")


def _web_address(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme in {"http", "https"} and parts.hostname:
        return text
    raise ValueError("must look like http://HOST:PORT/v1")


def _database(text: str) -> str:
    if text.startswith(("sqlite:///", "postgresql+psycopg://", "postgresql://")):
        return text
    raise ValueError("must look like sqlite:////PATH or postgresql://USER@HOST/DATABASE")


Endpoint = Annotated[str, AfterValidator(_endpoint)]
Address = Annotated[str, AfterValidator(_address)]


def _several(value: Any) -> Any:
    """Several values as an environment variable gives them: JSON, or separated by commas."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("["):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError("is no list: write [1, 2] or 1,2") from error
    return [part.strip() for part in text.split(",") if part.strip()]


Endpoints = Annotated[tuple[Endpoint, ...], NoDecode, BeforeValidator(_several)]
Paths = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_several)]
Numbers = Annotated[tuple[Annotated[float, Field(gt=0)], ...], NoDecode, BeforeValidator(_several)]
Counts = Annotated[tuple[Annotated[int, Field(gt=0)], ...], NoDecode, BeforeValidator(_several)]
Texts = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_several)]
Count = Annotated[int, Field(ge=1)]
Bytes = Annotated[int, Field(ge=KIBI)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]

# ------------------------------------------------------------------------------------- sections


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class EndpointSettings(_Section):
    """Where things listen. Everything is this machine only until keys are configured."""

    agents: Endpoint = "tcp://127.0.0.1:28410"
    """Agents send their steps here (encoder)."""
    correlator: Endpoint = "tcp://127.0.0.1:28411"
    """The encoder sends features here, with credit (correlator)."""
    explainer: Endpoint = "tcp://127.0.0.1:28414"
    """The encoder sends features here, with credit (explainer)."""
    encoder_feed: Endpoint = "tcp://127.0.0.1:28412"
    """Viewers subscribe here; so for the other two feeds."""
    correlator_feed: Endpoint = "tcp://127.0.0.1:28413"
    explainer_feed: Endpoint = "tcp://127.0.0.1:28415"
    correlator_queries: Endpoint = "tcp://127.0.0.1:28417"
    """Questions about the statistics are asked here (correlator)."""
    encoder_health: Address = "127.0.0.1:28420"
    """/healthz and /metrics over HTTP."""
    correlator_health: Address = "127.0.0.1:28421"
    explainer_health: Address = "127.0.0.1:28422"
    explainer_requests: Endpoint = "tcp://127.0.0.1:28416"
    """The console hands claims by people to the explainer here."""
    console_health: Address = "127.0.0.1:28423"
    control: Endpoint = "tcp://127.0.0.1:28418"
    """Agents take commands from here (control)."""
    control_requests: Endpoint = "tcp://127.0.0.1:28419"
    """The console and `interlatent-live intervene` command here (control)."""
    control_health: Address = "127.0.0.1:28424"
    pictures: Endpoint = "tcp://127.0.0.1:28426"
    """Agents may send pictures of their environment here (console)."""
    pictures_feed: Endpoint = "tcp://127.0.0.1:28427"
    """The console passes pictures on here, to the recorder."""
    recorder: Endpoint = "tcp://127.0.0.1:28409"
    """The encoder sends features here, with credit, where recorder.folder is set (recorder)."""
    recorder_health: Address = "127.0.0.1:28425"

    def feeds(self) -> tuple[str, str, str]:
        """The endpoints that viewers subscribe to."""
        return (self.encoder_feed, self.correlator_feed, self.explainer_feed)

    def health(self, service: ServiceName) -> str:
        """``HOST:PORT`` of a service's /healthz and /metrics."""
        return str(getattr(self, f"{service}_health"))


ADDRESSES: Final = frozenset(
    name for name in EndpointSettings.model_fields if name.endswith("_health")
)
"""Endpoints that are HOST:PORT of an HTTP server; the others are ZeroMQ's."""


class EncoderSettings(_Section):
    """Turns activations into features."""

    transcoders: Paths = ()
    """Folders with transcoders, searched before those that come with the package."""
    device: Annotated[str, AfterValidator(_device)] = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    threads: Count = 1
    """Compute threads. Two on two busy cores collapse, so one is the default."""
    batch_rows: Count = 1024
    """Most steps that are encoded at once."""
    batch_delay_ms: Annotated[float, Field(ge=0, le=1000)] = 2.0
    """Longest that a step waits for others to be encoded with."""
    consumers: Endpoints = ()
    """Further receivers of features beside the correlator, the explainer and the recorder."""
    pending_rows: Count = 65_536
    """Most steps that wait to be encoded; what does not fit is declared lost."""
    rescan_s: Annotated[float, Field(ge=1, le=86_400)] = 2.0
    """How often the folders are looked at for new versions; SIGHUP looks at once."""
    weight_bytes: Bytes = 2048 * MEBI
    """Weights kept ready on the device; the transcoder used longest ago makes room."""


class CorrelatorSettings(_Section):
    """Relates features to metrics. Windows are counted in steps."""

    publish_every_s: Seconds = 1.0
    depth: Literal["full", "core"] = "full"
    """``core`` keeps moments, density and on/off means only: no intervals, lags or exemplars."""
    pane_steps: Count = 2048
    half_lives: Numbers = (4096.0, 65536.0)
    sliding: Counts = (16_384,)
    slices: Texts = ()
    """Rows with statistics of their own, each as ``NAME: PREDICATE``, such as
    ``falling: pole_angle > 0.1``; a predicate speaks of one step's metrics."""
    drift: bool = True
    """Watch densities, activations, correlations and the reconstruction error pane by pane."""
    drift_reference_panes: Annotated[int, Field(ge=8)] = 64
    """Panes that are taken as normal before drift is looked for."""
    drift_panes_to_false_alarm: Annotated[float, Field(ge=100)] = 10_000.0
    """Mean number of panes to a false alarm, for all monitors of a hook point together."""
    conformal: Texts = ("fvu", "novelty")
    """Scores with an alarm of stated rate: ``fvu``, ``novelty``, or ``metric:NAME``."""
    conformal_rate: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Share of blocks in which such an alarm is false."""
    conformal_block_steps: Annotated[int, Field(ge=16)] = 512
    """Rows of a block, whose largest score is judged."""
    alert_rules: Path | None = None
    """TOML file with alert rules; `interlatent-live alerts check` reads it."""
    alert_every_s: Annotated[float, Field(ge=0.01, le=3600)] = 1.0
    """How often rules are evaluated, in the agent's time."""
    alertmanager: Annotated[str, AfterValidator(_web_address)] | None = None
    """Address of a Prometheus Alertmanager; none: nobody is called."""
    webhook: Annotated[str, AfterValidator(_web_address)] | None = None
    """Address that alerts are posted to as JSON; none: nobody is called."""
    webhook_key: Path | None = None
    """File with the secret that signs what is posted to the webhook (HMAC-SHA256)."""
    snapshots: Path | None = None
    """Folder for snapshots of the statistics, from which a restart goes on; none: no snapshots."""
    snapshot_every_s: Seconds = 60.0
    snapshots_kept: Count = 8
    """Newest snapshots of each hook point; the last one of each of as many days stays too."""
    replay: Paths = ()
    """Recordings, or folders of them, whose rows after the snapshot are read at a restart."""


class ExplainerSettings(_Section):
    """Says what features stand for, and what the agent is doing."""

    writer: Literal["builtin", "openai", "anthropic"] = "builtin"
    """Who words the claims; nothing leaves this machine unless a hosted one is chosen here."""
    base_url: Annotated[str, AfterValidator(_web_address)] | None = None
    """Of an OpenAI-compatible or Anthropic-compatible server; none: the vendor's own."""
    model: str = ""
    money_limit: Annotated[float, Field(ge=0)] = 0.0
    """US dollars that may be spent on a paid API in one run."""
    request_timeout_s: Seconds = 20.0
    second_opinion: bool = False
    """Whether the language model is also told the words of each verified claim alone, and guesses
    on which later steps the feature is on; costs four requests a claim."""
    narrate_every_s: Seconds = 4.0
    narrate_gap_s: Seconds = 1.0
    """Least time between two lines, also where something happens meanwhile."""
    calibration: Path | None = None
    """Recording that claims are proposed from; none: they are proposed from early episodes."""
    looks: Paths = ()
    """Recordings that are being replayed: claims are scored at the very rows at which they were
    scored then, and the time is the recording's. `interlatent-live replay` sets it."""
    block_steps: Annotated[int, Field(ge=20)] | None = None
    """Steps after which an episode that goes on counts as another one, for claims; none: 20
    autocorrelation times of the slowest metric, in runs whose episodes do not end."""
    null_draws: Annotated[int, Field(ge=99)] = 999
    """Draws of the null that a claim's score is held against."""
    seed: int = 0


class ConsoleSettings(_Section):
    """What is kept of what the services say, and where it is told over HTTP."""

    http: Address = "127.0.0.1:28480"
    """HOST:PORT of the HTTP API; this machine only, because reading needs no login."""

    state: Path | None = None
    """Folder of the store and of the token for writing; none: $STATE_DIRECTORY, or else
    interlatent-live under $XDG_STATE_HOME or ~/.local/state."""
    store: Annotated[str, AfterValidator(_database)] | None = None
    """Database of claims, verdicts, costs, narration and corrections; none: SQLite in the state
    folder. PostgreSQL needs the extra postgres."""
    runs_kept: Count = 200
    """Newest runs in the store; older ones go, unless people corrected their claims."""
    narrations_kept: Count = 10_000
    """Newest narrated intervals in the store, over all runs."""
    replay_events: Count = 2000
    """Newest events of the feed that a client which comes back can still have."""
    replay_bytes: Bytes = 16 * MEBI
    """Most bytes of those events."""
    clients: Count = 64
    """Feeds over HTTP that may be open at once."""
    live_bytes: Bytes = 32 * MEBI
    """Newest steps kept for pages; they are taken in only while a page shows them."""
    history_bytes: Bytes = 8 * MEBI
    """Sums of steps kept to compare metrics before interventions and meanwhile."""
    picture_bytes: Bytes = 16 * MEBI
    """Pictures kept for the moments on features' cards, of all agents together."""
    recordings: Path | None = None
    """Folder of the recordings that the page may show; none: the one of recorder.folder, if any."""
    branches: Path | None = None
    """Folder of branches that the page shows and plays to; none: branches in the state folder."""


class ControlSettings(_Section):
    """Who may step in, and what is written of it."""

    audit: Path | None = None
    """Folder of the audit; none: audit in the console's state folder."""
    audit_bytes: Bytes = 16 * MEBI
    """Entries that wait for a disk that is slow; beyond it what adds energy is refused."""
    second_above: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of an agent's own bound above which an intervention needs a second person; 1: none."""


class RecorderSettings(_Section):
    """Writes what the agents did, and what was said of it, into files (docs/recordings.md)."""

    folder: Path | None = None
    """Folder of the recordings; none: nothing is recorded, and no recorder is started."""
    chunk_seconds: Annotated[float, Field(gt=0, le=60)] = 1.0
    """Longest that rows wait to be written; `kill -9` costs at most so much."""
    file_bytes: Bytes = 256 * MEBI
    """Size at which the next file is begun."""
    file_seconds: Annotated[float, Field(ge=1, le=30 * 86_400)] = 3600.0
    """Age at which the next file is begun."""
    keep_bytes: Bytes | None = None
    """Most bytes of all recordings in the folder; the oldest go. None: they stay."""
    keep_days: Annotated[float, Field(gt=0)] | None = None
    """Age at which recordings go; none: they stay."""
    redact: Texts = ()
    """Names of metrics that are left out of rows, manifests and documents."""
    foxglove: bool = True
    """Write a few rows a second as JSON too, for Foxglove and other viewers."""
    picture_bytes_per_s: Annotated[int, Field(ge=0)] = 64 * KIBI
    """Bytes of pictures that may be written a second, of all agents together; 0: none are."""
    compression: Literal["zstd", "lz4", "none"] = "zstd"
    durable: bool = False
    """Wait until each chunk is on the disk, so that a power cut costs no more than a kill."""


class LimitSettings(_Section):
    """What may be connected and how much may wait; memory follows from it."""

    agents: Count = 64
    consumers: Count = 8
    message_bytes: Bytes = 16 * MEBI
    """Largest body of one message."""
    agent_bytes: Bytes = 4 * MEBI
    """Steps of one agent that are sent and not yet acknowledged."""
    messages_per_s: Annotated[float, Field(ge=10, le=1_000_000)] = 20_000.0
    """Messages that one connection may send a second; more are refused and counted."""
    consumer_bytes: Bytes = 16 * MEBI
    """Features of one consumer that are sent and not yet acknowledged."""
    feed_bytes: Bytes = 16 * MEBI
    """Documents waiting for viewers."""
    statistics_bytes: Bytes = 512 * MEBI
    """Tables of the correlator."""
    evidence_bytes: Bytes = 512 * MEBI
    """Steps that the explainer keeps to score claims on."""


class SecuritySettings(_Section):
    """Beyond this machine nothing is open without keys."""

    keys: Path | None = None
    """Folder with this machine's CURVE keys; needed as soon as an endpoint is not loopback."""
    remote_health: bool = False
    """Whether /healthz and /metrics, which have no login, may listen beyond this machine."""


class TracingSettings(_Section):
    """Traces from a step to the claims it led to, for an OpenTelemetry collector."""

    endpoint: Annotated[str, AfterValidator(_web_address)] | None = None
    """Where spans are sent by OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces; none:
    nothing is traced. Needs the extra otel. No variable of OpenTelemetry's own has any effect."""
    every_steps: Count = 1000
    """Every so many-th step of each agent is traced."""
    headers: Path | None = None
    """File with headers for the collector, such as its key, one NAME: VALUE a line."""
    spans: Annotated[int, Field(ge=512)] = 4096
    """Most spans of a service that wait to be sent; further ones are dropped and counted."""


class LoggingSettings(_Section):
    """What the services write about themselves."""

    level: LogLevel = "info"
    format: LogFormat = "auto"
    """``auto`` is for people on a terminal and JSON lines otherwise."""


class Settings(BaseSettings):
    """All of it. ``Settings()`` is the defaults, whatever the environment says."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=PREFIX, env_nested_delimiter=DELIMITER
    )

    endpoints: EndpointSettings = EndpointSettings()
    encoder: EncoderSettings = EncoderSettings()
    correlator: CorrelatorSettings = CorrelatorSettings()
    explainer: ExplainerSettings = ExplainerSettings()
    console: ConsoleSettings = ConsoleSettings()
    control: ControlSettings = ControlSettings()
    recorder: RecorderSettings = RecorderSettings()
    limits: LimitSettings = LimitSettings()
    security: SecuritySettings = SecuritySettings()
    tracing: TracingSettings = TracingSettings()
    logging: LoggingSettings = LoggingSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic-settings passes all by name
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what it is given: :func:`resolve` reads the sources, to know which said what."""
        return (init_settings,)

    @model_validator(mode="after")
    def _closed_by_default(self) -> Self:
        if not is_loopback(split_address(self.console.http)[0]):
            raise ValueError(
                f"console.http ({self.console.http}) is open to other machines, and reading "
                "needs no login: use 127.0.0.1 and reach it through an SSH tunnel"
            )
        for name, value in self.endpoints:
            parts = urlsplit(value)
            host = split_address(value if name in ADDRESSES else parts.netloc)[0]
            if parts.scheme == "ipc" or is_loopback(host):
                continue
            if name.endswith("_health") and not self.security.remote_health:
                raise ValueError(
                    f"endpoints.{name} ({value}) is open to other machines and has no login: "
                    "use 127.0.0.1, or set security.remote_health to true"
                )
            if not name.endswith("_health") and self.security.keys is None:
                raise ValueError(
                    f"endpoints.{name} ({value}) is open to other machines: "
                    "use 127.0.0.1, or set security.keys to the folder with your keys"
                )
        return self

    def environment(self) -> dict[str, str]:
        """Variables under which a child process resolves to these very values, and to no file's."""
        variables = {CONFIG_VARIABLE: ""}
        for name, value in leaves(self):
            variables[variable(name)] = _as_text(value)
        return variables

    def services(self) -> tuple[ServiceName, ...]:
        """What makes a system under these settings: a recorder only where it has a folder."""
        everything: tuple[ServiceName, ...] = get_args(ServiceName)
        without = {"recorder"} if self.recorder.folder is None else set()
        return tuple(name for name in everything if name not in without)

    def consumers(self) -> tuple[str, ...]:
        """Where the encoder sends features, with credit."""
        endpoints = self.endpoints
        recorder = () if self.recorder.folder is None else (endpoints.recorder,)
        return (endpoints.correlator, endpoints.explainer, *recorder, *self.encoder.consumers)

    def buffers(self, service: ServiceName) -> BufferBudget:
        """Every buffer of a service with its limit; their sum bounds what the service may hold."""
        limits = self.limits
        features = Buffer("features not yet taken up", limits.consumer_bytes)
        viewers = Buffer("documents for viewers", limits.feed_bytes)
        own = {
            "encoder": (
                Buffer("steps not yet acknowledged", limits.agent_bytes, limits.agents),
                Buffer("features not yet acknowledged", limits.consumer_bytes, limits.consumers),
                *(
                    ()
                    if self.recorder.folder is None
                    else (Buffer("features kept to be sent again", limits.consumer_bytes),)
                ),
                Buffer("message being decoded", limits.message_bytes),
                viewers,
            ),
            "correlator": (
                features,
                Buffer("tables", limits.statistics_bytes),
                Buffer("questions and answers", limits.message_bytes, 2),
                *(
                    ()
                    if self.correlator.snapshots is None
                    else (Buffer("tables being saved or compared", limits.statistics_bytes),)
                ),
                viewers,
            ),
            "explainer": (features, Buffer("evidence", limits.evidence_bytes), viewers),
            # One for all clients over HTTP, whose queues are places in it.
            "console": (
                Buffer("events for clients", self.console.replay_bytes),
                Buffer("steps for pages", self.console.live_bytes),
                Buffer("pictures", 64 * KIBI, 64),
                Buffer("pictures on their way to a recorder", 64 * KIBI, 16),
                Buffer("pictures of exemplars", self.console.picture_bytes),
                Buffer("sums of steps around interventions", self.console.history_bytes),
                Buffer("password being checked", 32 * MEBI),
                Buffer("answer about a recording", 64 * MEBI),
            ),
            "control": (
                Buffer("agents as they describe themselves", 512 * KIBI, 4 * limits.agents),
                Buffer("requests not yet answered", 256 * KIBI, CONTROL_REQUESTS),
                Buffer("entries not yet in the audit", self.control.audit_bytes),
            ),
            # Received, and once more as it is written: acknowledged only once it is.
            "recorder": (
                features,
                Buffer("rows and documents of one chunk", limits.consumer_bytes),
                Buffer("pictures not yet taken up", 64 * KIBI, 16),
                Buffer("message being written", limits.message_bytes),
            ),
        }
        traced = self.tracing.endpoint is not None and service in TRACED
        spans = (Buffer("spans not yet sent", 2 * KIBI, self.tracing.spans),) if traced else ()
        return BufferBudget((*own[service], *spans))


# -------------------------------------------------------------------------------------- buffers


@dataclass(frozen=True, slots=True)
class Buffer:
    """``count`` buffers of at most ``each`` bytes."""

    name: str
    each: int
    count: int = 1

    @property
    def total(self) -> int:
        """Bytes of all of them."""
        return self.each * self.count


@dataclass(frozen=True, slots=True)
class BufferBudget:
    """The buffers of one process."""

    buffers: tuple[Buffer, ...]

    @property
    def total(self) -> int:
        """Bytes that the process may hold waiting, at most."""
        return sum(buffer.total for buffer in self.buffers)

    def __str__(self) -> str:
        parts = ", ".join(
            f"{buffer.name} {human_bytes(buffer.each)}"
            + (f" × {buffer.count}" if buffer.count > 1 else "")
            for buffer in self.buffers
        )
        return f"{human_bytes(self.total)} at most ({parts})"


def human_bytes(count: int) -> str:
    """``"4 MiB"``; one decimal where it is not whole."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < KIBI:
            break
        value, unit = value / KIBI, larger
    return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"


# ------------------------------------------------------------------------------------ resolving


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings, and for each dotted name where its value came from."""

    settings: Settings
    origin: Mapping[str, str]
    file: Path | None


def load_settings(
    config: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """The settings alone; see :func:`resolve`."""
    return resolve(config, flags, environment).settings


def resolve(
    config: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Resolved:
    """Read the file, the environment and the flags, each on top of the one before.

    Args:
        config: the TOML file; without it ``$INTERLATENT_CONFIG`` or, where there is one,
            ``interlatent.toml`` in the current folder. Paths in it are relative to its folder.
        flags: values by dotted name, such as ``{"encoder.device": "cpu"}``; ``None`` is left out.
        environment: instead of ``os.environ``, for tests.

    Raises:
        UserError: when the file is missing or no TOML, or a key or a value is not understood.
    """
    variables = os.environ if environment is None else environment
    file = _config_file(config, variables)
    layers: list[tuple[str, dict[str, Any]]] = []
    if file is not None:
        layers.append((str(file), _from_file(file)))
    layers += [
        (variable(name), _nested(name, value)) for name, value in _from_environment(variables)
    ]
    layers += [
        ("flag", _nested(name, value)) for name, value in (flags or {}).items() if value is not None
    ]
    merged: dict[str, Any] = {}
    origin = {name: "default" for name, _ in leaves(Settings())}
    for source, values in layers:
        for name, value in _flat(values):
            _check_known(name, source)
            _put(merged, name, value)
            origin[name] = source
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        raise UserError(_sentence(error, origin)) from error
    return Resolved(settings, origin, file)


def parse_flag(text: str) -> tuple[str, Any]:
    """``NAME=VALUE`` of ``--set``: a dotted name and a TOML value, or else plain text.

    Raises:
        UserError: when there is no ``=`` or nothing before it.
    """
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals or not name:
        raise UserError(f"--set {text}: write it as NAME=VALUE, such as encoder.device=cpu")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


def variable(name: str) -> str:
    """The environment variable of a dotted name: ``INTERLATENT_ENCODER__DEVICE``."""
    return PREFIX + name.replace(".", DELIMITER).upper()


def leaves(settings: Settings) -> Iterator[tuple[str, Any]]:
    """Every setting by its dotted name, in the order of the documentation."""
    for section, values in settings:
        for key, value in values:
            yield f"{section}.{key}", value


def describe() -> Iterator[tuple[str, str]]:
    """Every setting's dotted name and its documentation; a section's own comes first."""
    for section, field in Settings.model_fields.items():
        model = field.annotation
        if model is None:
            continue
        yield section, (model.__doc__ or "").strip()
        for key, inner in model.model_fields.items():
            yield f"{section}.{key}", inner.description or ""


def on_free_ports(settings: Settings) -> Settings:
    """The same settings with everything that listens on a TCP port of 127.0.0.1 that is free now.

    For a demo or a test beside a running system. All ports are held while they are drawn, so no
    two are the same; another process can still take one before the service binds it, which the
    service then says.
    """
    with ExitStack() as stack:
        ports = []
        for _ in (*EndpointSettings.model_fields, "console.http"):
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    endpoints = {
        name: f"127.0.0.1:{port}" if name in ADDRESSES else f"tcp://127.0.0.1:{port}"
        for name, port in zip(EndpointSettings.model_fields, ports, strict=False)
    }
    console = settings.console.model_copy(update={"http": f"127.0.0.1:{ports[-1]}"})
    return settings.model_copy(
        update={"endpoints": EndpointSettings(**endpoints), "console": console}
    )


# -------------------------------------------------------------------------------------- sources


def _config_file(config: Path | None, variables: Mapping[str, str]) -> Path | None:
    if config is None:
        named = variables.get(CONFIG_VARIABLE)
        if named is None:
            default = Path(CONFIG_FILE)
            return default if default.is_file() else None
        if not named:
            return None
        config = Path(named)
    if not config.is_file():
        raise UserError(f"there is no configuration file {config}; write one, or leave it out")
    return config


def _from_file(file: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not a TOML file: {error}") from error
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror}") from error
    base = file.resolve().parent
    for section, field in Settings.model_fields.items():
        model, given = field.annotation, values.get(section)
        if model is None or not isinstance(given, dict):
            continue
        for key, inner in model.model_fields.items():
            if key in given and _holds_path(inner.annotation):
                given[key] = _relative_to(base, given[key])
    return values


def _holds_path(annotation: Any) -> bool:
    return annotation is Path or any(_holds_path(inner) for inner in get_args(annotation))


def _relative_to(base: Path, value: Any) -> Any:
    if isinstance(value, str):
        return str(base / Path(value).expanduser())
    return [_relative_to(base, one) for one in value] if isinstance(value, list) else value


def _from_environment(variables: Mapping[str, str]) -> list[tuple[str, Any]]:
    """What ``INTERLATENT_SECTION__KEY`` variables say.

    A variable without the double underscore is none of ours: other products share the prefix.
    """
    ours = {
        name: value
        for name, value in variables.items()
        if name.startswith(PREFIX) and DELIMITER in name
    }
    source = EnvSettingsSource(Settings)
    source.env_vars = {
        name.lower(): None if value == NONE else value for name, value in ours.items()
    }
    values = dict(_flat(source()))
    for name in ours:
        dotted = name.removeprefix(PREFIX).replace(DELIMITER, ".").lower()
        values.setdefault(dotted, None)  # unknown to the model: refused by name later
    return list(values.items())


def _nested(name: str, value: Any) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    _put(nested, name, value)
    return nested


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    *path, last = name.split(".")
    for part in path:
        values = values.setdefault(part, {})
    values[last] = value


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_known(name: str, source: str) -> None:
    known = [one for one, _ in leaves(Settings())]
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    help_ = f"did you mean {near[0]}?" if near else "see `interlatent-live config show`"
    raise UserError(f"{source}: there is no setting {name}; {help_}")


def _sentence(error: ValidationError, origin: Mapping[str, str]) -> str:
    problems = []
    for one in error.errors():
        name = ".".join(str(part) for part in one["loc"][:2])
        message = one["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        source = f" ({origin[name]})" if name in origin else ""
        shown = f" is {one['input']!r}" if name in origin else ""
        problems.append(f"{name}{shown}{source}: {message}" if name else message)
    return "; ".join(problems)


def _as_text(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, tuple):
        return json.dumps([str(one) if isinstance(one, Path) else one for one in value])
    if isinstance(value, bool):
        return str(value).lower()
    # A child may run in another folder.
    return str(value.resolve()) if isinstance(value, Path) else str(value)
