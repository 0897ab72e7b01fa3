"""``interlatent-live doctor``: in plain words, what is here and what is missing.

It looks; it changes nothing and it talks to nobody. Only a language model that is named with
``--connect`` is connected to, and then without a key and without a call that could cost money.
"""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from interlatent_live.cli.options import ConfigOption, SetOption, resolve_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from interlatent_live.config import Resolved, Settings

WIDTH: Final = 80
CONNECT_TIMEOUT_S: Final = 5.0
VENDORS: Final = {
    "openai": ("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "anthropic": ("https://api.anthropic.com/v1", "ANTHROPIC_API_KEY"),
}
_TIME_ERROR: Final = 5
"""What adjtimex(2) returns when nothing keeps the clock in step."""
_FEW_FILES: Final = 1024


class State(StrEnum):
    """How a finding is to be taken."""

    GOOD = "ok"
    NOTE = "note"
    BAD = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; ``remedy`` says what to do about a problem or a note."""

    topic: str
    state: State
    text: str
    remedy: str = ""


def doctor(
    config: ConfigOption = None,
    sets: SetOption = None,
    connect: Annotated[
        str | None,
        typer.Option(
            metavar="WHO",
            help="Also connect to a language model: openai, anthropic, or the URL of a server. "
            "No key is sent and nothing that costs money is asked.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say what is installed, which device and language model would be used, and what is in the way.

    Exits with 1 when something is in the way.
    """
    resolved = resolve_options(config, sets)
    findings = list(examine(resolved, connect))
    if as_json:
        rows = [asdict(finding) for finding in findings]
        print(json.dumps({"findings": rows}, indent=1, ensure_ascii=False))
    else:
        _print(findings)
    if any(finding.state is State.BAD for finding in findings):
        raise typer.Exit(1)


def examine(resolved: Resolved, connect: str | None = None) -> Iterator[Finding]:
    """Every finding, in the order they are shown."""
    settings = resolved.settings
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        installed,
        lambda: device(settings),
        lambda: machine(settings),
        lambda: ports(settings),
        clock,
        lambda: language_model(settings),
        lambda: keys(settings),
    )
    where = str(resolved.file) if resolved.file else "no file; defaults"
    changed = sorted({source for source in resolved.origin.values() if source != "default"})
    beside = [source for source in changed if source != str(resolved.file)]
    yield Finding("configuration", State.GOOD, ", ".join([where, *beside]))
    for check in checks:
        yield from check()
    if connect is not None:
        yield reach(connect, settings)


# ------------------------------------------------------------------------------------- checks


def installed() -> Iterator[Finding]:
    """The interpreter, the package and its extras."""
    from importlib import metadata

    python = ".".join(map(str, sys.version_info[:3]))
    try:
        version = metadata.version("interlatent-live")
        requirements = metadata.requires("interlatent-live") or []
    except metadata.PackageNotFoundError:
        yield Finding(
            "installed",
            State.BAD,
            f"Python {python}; interlatent-live is imported but not installed",
            "pip install -e . in its folder, so that versions and extras are known",
        )
        return
    missing = _missing(requirements, None)
    yield Finding(
        "installed",
        State.BAD if missing else State.GOOD,
        f"interlatent-live {version}, Python {python}"
        + (f"; missing: {', '.join(missing)}" if missing else ""),
        "pip install interlatent-live again" if missing else "",
    )
    for extra in sorted({found for line in requirements if (found := _extra(line))}):
        lacks = _missing(requirements, extra)
        yield Finding(
            f"extra {extra}",
            State.NOTE if lacks else State.GOOD,
            f"not installed: {', '.join(lacks)}" if lacks else "installed",
            f'pip install "interlatent-live[{extra}]" if you want it' if lacks else "",
        )


def device(settings: Settings) -> Iterator[Finding]:
    """Where features would be computed."""
    wanted = settings.encoder.device
    try:
        import torch
    except ImportError as error:
        yield Finding("device", State.BAD, f"torch can't be imported: {error}", "reinstall torch")
        return
    cores = len(os.sched_getaffinity(0))
    cpu = f"the CPU ({cores} cores, {settings.encoder.threads} compute thread(s))"
    if torch.cuda.is_available():
        gpu = f"{torch.cuda.get_device_name(0)} (CUDA {torch.version.cuda})"
        uses = cpu if wanted == "cpu" else gpu
        yield Finding("device", State.GOOD, f"torch {torch.__version__} would use {uses}")
    elif wanted.startswith("cuda"):
        yield Finding(
            "device",
            State.BAD,
            f"encoder.device is {wanted}, but torch {torch.__version__} sees no CUDA device",
            "set encoder.device to auto, or install a CUDA build of torch and its driver",
        )
    else:
        yield Finding("device", State.GOOD, f"torch {torch.__version__} would use {cpu}")
    if settings.encoder.threads > max(1, cores // 2):
        yield Finding(
            "threads",
            State.NOTE,
            f"{settings.encoder.threads} compute threads on {cores} cores slow each other down",
            "encoder.threads = 1",
        )


def machine(settings: Settings) -> Iterator[Finding]:
    """Memory for the buffers, and file descriptors for the connections."""
    import resource

    from interlatent_live.config import human_bytes

    total = sum(settings.buffers(name).total for name in settings.services())
    free = _available_memory()
    fits = free is None or total < free
    yield Finding(
        "memory",
        State.GOOD if fits else State.NOTE,
        f"buffers may take {human_bytes(total)} in all"
        + (f"; {human_bytes(free)} are available" if free is not None else ""),
        "" if fits else "lower limits.agents or the byte limits",
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = max(_FEW_FILES, 8 * (settings.limits.agents + settings.limits.consumers))
    enough = soft == resource.RLIM_INFINITY or soft >= need
    most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    yield Finding(
        "open files",
        State.GOOD if enough else State.NOTE,
        f"{soft} allowed" if enough else f"{soft} allowed, {need} may be needed",
        "" if enough else f"ulimit -n {need} (at most {most})",
    )


def ports(settings: Settings) -> Iterator[Finding]:
    """Whether every endpoint can be listened on, or who does already."""
    from urllib.parse import urlsplit

    from interlatent_live.config import ADDRESSES, split_address

    endpoints = dict(settings.endpoints)
    running = {
        name.removesuffix("_health"): who
        for name, address in endpoints.items()
        if name.endswith("_health") and (who := _who_answers(address))
    }
    if running:
        names = ", ".join(f"{name} (process {pid})" for name, pid in running.items())
        yield Finding("running", State.GOOD, f"already up: {names}")
    free: list[tuple[str, int]] = []
    blocked: list[tuple[str, int]] = []
    for name, value in endpoints.items():
        parts = urlsplit(value)
        if parts.scheme == "ipc":
            continue
        host, port = split_address(value if name in ADDRESSES else parts.netloc)
        (free if _can_listen(host, port) else blocked).append((name, port))
    if free:
        yield Finding("ports", State.GOOD, f"free: {', '.join(str(port) for _, port in free)}")
    for name, port in blocked:
        owner = {"agents": "encoder", "pictures": "console"}.get(name, name.partition("_")[0])
        if owner in running:
            continue
        yield Finding(
            f"port {port}",
            State.BAD,
            f"endpoints.{name} can't listen there: the port is in use or not allowed",
            f"stop what uses it, or set endpoints.{name}",
        )


def clock() -> Iterator[Finding]:
    """Whether the wall clock is kept in step, which latencies across machines need."""
    import ctypes
    import time

    if time.gmtime().tm_year < 2025:
        yield Finding("clock", State.BAD, "the clock is years off", "set it, or run NTP")
        return
    # struct timex with modes = 0 only reads; 512 bytes are more than any version of it.
    buffer = ctypes.create_string_buffer(512)
    state = ctypes.CDLL(None).adjtimex(buffer)
    kept = 0 <= state < _TIME_ERROR
    yield Finding(
        "clock",
        State.GOOD if kept else State.NOTE,
        "kept in step" if kept else "nothing keeps it in step; fine while all is on one machine",
        "" if kept else "run an NTP client before agents on other machines connect",
    )


def language_model(settings: Settings) -> Iterator[Finding]:
    """Who would word the claims; nobody is contacted."""
    explainer = settings.explainer
    if explainer.writer == "builtin":
        yield Finding(
            "language model",
            State.GOOD,
            "none: the built-in writer states each rule in English, and says that it is no LLM",
        )
        return
    url, variable = VENDORS[explainer.writer]
    base = explainer.base_url or url
    keyed = bool(os.environ.get(variable))
    problems, remedies = [], []
    if not explainer.model:
        problems.append("no model is named")
        remedies.append("set explainer.model")
    if not keyed and explainer.base_url is None:
        problems.append(f"{variable} is not set")
        remedies.append(f"set {variable}")
    if explainer.base_url is None and explainer.money_limit == 0:
        problems.append("explainer.money_limit is 0, so no paid call will be made")
        remedies.append("set explainer.money_limit, in US dollars")
    yield Finding(
        "language model",
        State.BAD if problems else State.GOOD,
        f"{explainer.writer}, {explainer.model or 'no model'}, at {base}"
        + (f"; {'; '.join(problems)}" if problems else "; not contacted"),
        ", ".join(remedies)
        if problems
        else f"`doctor --connect {explainer.base_url or explainer.writer}` tries the connection",
    )


def keys(settings: Settings) -> Iterator[Finding]:
    """Whether the folder with the keys is there and closed to others."""
    folder = settings.security.keys
    if folder is None:
        yield Finding("keys", State.GOOD, "none configured, so everything stays on this machine")
    elif not folder.is_dir():
        yield Finding(
            "keys", State.BAD, f"security.keys: there is no folder {folder}", "make the keys first"
        )
    elif folder.stat().st_mode & 0o077:
        yield Finding(
            "keys", State.BAD, f"{folder} can be read by other users", f"chmod 700 {folder}"
        )
    else:
        yield Finding("keys", State.GOOD, f"{folder}, closed to other users")


def reach(who: str, settings: Settings) -> Finding:
    """Connect to a language model's server and ask for its list of models, without a key.

    An answer that refuses for lack of a key shows that somebody is there; that is the question.
    """
    import http.client
    import urllib.error
    import urllib.request

    base = who
    if who in VENDORS:
        own = settings.explainer.base_url if settings.explainer.writer == who else None
        base = own or VENDORS[who][0]
    if not base.startswith(("http://", "https://")):
        return Finding(
            "connection",
            State.BAD,
            f"{who!r} is neither openai, anthropic nor a URL",
            "write it as http://HOST:PORT/v1",
        )
    url = base.rstrip("/") + "/models"
    try:
        with urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_S) as answer:  # noqa: S310 - checked above
            body = answer.read(1 << 20)
    except urllib.error.HTTPError as error:
        with error:
            return _answered(base, error.code)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Finding(
            "connection",
            State.BAD,
            f"{base} can't be reached: {reason}",
            "check the address, and that the server runs",
        )
    names = _model_names(body)
    listed = f"; models: {', '.join(names[:5])}" + (", …" if len(names) > 5 else "")
    return Finding("connection", State.GOOD, f"{base} answers{listed if names else ''}")


# ------------------------------------------------------------------------------------ helpers


def _answered(base: str, status: int) -> Finding:
    if status in {401, 403}:
        return Finding("connection", State.GOOD, f"{base} answers, and wants a key (none was sent)")
    return Finding(
        "connection",
        State.NOTE,
        f"{base} answers, but with status {status} to a request for its models",
        "check the path; most servers want /v1 at the end",
    )


def _model_names(body: bytes) -> list[str]:
    with suppress(ValueError, TypeError, KeyError):
        return [str(one["id"]) for one in json.loads(body)["data"]]
    return []


def _extra(requirement: str) -> str:
    found = re.search(r"""extra\s*==\s*["']([^"']+)["']""", requirement)
    return found.group(1) if found else ""


def _missing(requirements: list[str], extra: str | None) -> list[str]:
    from importlib import metadata

    missing = []
    for line in requirements:
        found = re.match(r"[A-Za-z0-9._-]+", line)
        if found is None or _extra(line) != (extra or "") or found[0] == "interlatent-live":
            continue
        try:
            metadata.version(found[0])
        except metadata.PackageNotFoundError:
            missing.append(found[0])
    return missing


def _available_memory() -> int | None:
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _can_listen(host: str, port: int) -> bool:
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the services do: a port that only waits for old connections to fade is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("" if host == "*" else host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def _who_answers(address: str) -> int | None:
    """Process id of the service of ours whose health page this is."""
    import http.client

    connection = http.client.HTTPConnection(address, timeout=1.0)
    try:
        connection.request("GET", "/healthz/live")
        answer = json.loads(connection.getresponse().read(1 << 16))
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    is_ours = isinstance(answer, dict) and "service" in answer
    return int(answer["pid"]) if is_ours and isinstance(answer.get("pid"), int) else None


def _print(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    styles = {State.GOOD: "green", State.NOTE: "yellow", State.BAD: "bold red"}
    for one in findings:
        text = one.text + (f"\n→ {one.remedy}" if one.remedy else "")
        # As Text: what is shown may hold square brackets, which are no markup of ours.
        table.add_row(Text(str(one.state), styles[one.state]), Text(one.topic), Text(text))
    console.print(table, width=min(console.width, WIDTH))
    problems = sum(one.state is State.BAD for one in findings)
    console.print(
        "Nothing is in the way." if not problems else f"{problems} thing(s) are in the way.",
        style="bold",
    )
