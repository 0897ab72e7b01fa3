"""``interlatent-live claims``: what is claimed of features, and a person's own word on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from interlatent_live.cli.options import ConfigOption, SetOption, resolve_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interlatent_live.client import (
        Claim,
        ClaimText,
        ConsoleClient,
        Cost,
        Recent,
        SecondOpinion,
        Version,
    )
    from interlatent_live.errors import UserError

app = typer.Typer(
    name="claims",
    help="List claims, look into them, make one yourself, and say where one is wrong.",
    no_args_is_help=True,
)

ClaimArgument = Annotated[
    str, typer.Argument(help="A claim's id, or a feature's address as `claims list` shows it.")
]
FeatureArgument = Annotated[
    str, typer.Argument(help="HOOK_POINT/INDEX, such as hidden.1/17, or a whole address.")
]
RunOption = Annotated[str, typer.Option(help="Only this run; the newest where one is needed.")]
HookOption = Annotated[str, typer.Option("--hook-point", help="Only this hook point.")]
PersonOption = Annotated[
    str, typer.Option(help="Who says so. [default: the user's name on this machine]")
]
JsonOption = Annotated[bool, typer.Option("--json", help="The whole answer as JSON.")]
STYLES = {"verified": "green", "contradicted": "red", "stale": "red"}


@app.command("list")
def list_(
    run: RunOption = "",
    hook_point: HookOption = "",
    verdict: Annotated[
        str,
        typer.Option(help="Only verified, weak, contradicted, abstained, pending or stale ones."),
    ] = "",
    limit: Annotated[int, typer.Option(help="At most so many.", min=1)] = 50,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """List claims as they were last published: the verified first, then by balanced accuracy."""
    with _console(config, assign) as console:
        found = list(console.claims(run_id=run, hook_point=hook_point, verdict=verdict))
    found.sort(key=lambda one: (one.verdict != "verified", -(one.text.balanced_accuracy or 0.0)))
    if as_json:
        _json(found[:limit])
        return
    _table(
        ("claim", "feature", "verdict", "accuracy", "says"),
        [
            (one.id, f"{one.hook_point}/{one.feature}", one.verdict, _accuracy(one.text),
             one.text.label)
            for one in found[:limit]
        ],
        last="says",
    )  # fmt: skip
    if len(found) > limit:
        print(f"{len(found) - limit} more; --limit shows them")
    if not found:
        print("no claims yet")


@app.command()
def show(
    claim: ClaimArgument,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Show one claim with its scores, and why its verdict is what it is."""
    with _console(config, assign) as console:
        found = _claim(console, claim)
    if as_json:
        _json(found)
        return
    rows = [
        ("claim", f"{found.id}, version {found.version}"),
        ("run", found.run_id),
        ("feature", found.address),
        *_text_rows(found.text),
    ]
    if found.text.challenger is not None:
        rows.append(("", ""))
        rows.append(("beside it", "a claim that is being checked and does not stand yet:"))
        rows += _text_rows(found.text.challenger)
    _table(("", ""), rows, last="", head=False)


@app.command()
def add(
    feature: FeatureArgument,
    predicate: Annotated[
        str, typer.Argument(help="When it is on, such as 'pole_angle > 0.1 and lag(x, 3) < 0'.")
    ],
    run: RunOption = "",
    label: Annotated[str, typer.Option(help="A short name; otherwise made from the rule.")] = "",
    description: Annotated[str, typer.Option(help="In your own words.")] = "",
    person: PersonOption = "",
    wait_s: Annotated[
        float, typer.Option("--wait", help="Wait so many seconds for a verdict.", min=0)
    ] = 0.0,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Say yourself when a feature is on: checked on later episodes like any claim.

    It is checked beside the claim that stands, and takes its place once it is verified and tells on
    from off better on the same episodes. Every text that was ever said is kept.
    """
    import time

    from interlatent_live.errors import UserError

    hook_point, index = _feature(feature)
    with _console(config, assign) as console:
        run_id = run or _newest_run(console)
        try:
            made = console.add_claim(
                run_id=run_id, hook_point=hook_point, feature=index, predicate=predicate,
                person=person or _user(), label=label, description=description,
            )  # fmt: skip
        except UserError as error:
            raise _pointed(error, predicate) from None
        deadline = time.monotonic() + wait_s
        verdict, reason = made.verdict, "no episode has begun since"
        while verdict == "pending" and time.monotonic() < deadline:
            time.sleep(0.5)
            for one in console.claims(run_id=run_id, address=made.address):
                for text in (one.text, one.text.challenger):
                    if text is not None and text.created_ns == made.created_ns:
                        verdict, reason = text.verdict, text.reason
    if as_json:
        _json({"claim": made, "verdict": verdict, "reason": reason})
        return
    print(f"accepted as version {made.version} of {made.address}")
    print(f"on when {made.english}")
    print(f"{verdict}: {reason}")


@app.command()
def word(
    feature: FeatureArgument,
    run: RunOption = "",
    person: PersonOption = "",
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Have the language model word a feature's claim before all others."""
    hook_point, index = _feature(feature)
    with _console(config, assign) as console:
        console.word_first(
            run_id=run or _newest_run(console), hook_point=hook_point, feature=index,
            person=person or _user(),
        )  # fmt: skip
    print(f"{hook_point}/{index} is worded next; `interlatent-live claims show` will have it")


@app.command()
def correct(
    claim: ClaimArgument,
    kind: Annotated[str, typer.Argument(help="accept, reject or relabel.")],
    label: Annotated[str, typer.Option(help="The new name, for relabel.")] = "",
    note: Annotated[str, typer.Option(help="Why.")] = "",
    person: PersonOption = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Say that a claim is right, wrong, or wrongly named; kept with the verdict it had then."""
    with _console(config, assign) as console:
        found = _claim(console, claim)
        said = console.correct(found.id, kind, person=person or _user(), note=note, label=label)
    if as_json:
        _json(said)
        return
    print(f"kept: {said.person} says {said.kind} of version {said.version} ({said.verdict})")


@app.command()
def history(
    claim: ClaimArgument,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Show every version, verdict and correction of a claim, oldest first."""
    with _console(config, assign) as console:
        found = console.history(_claim(console, claim).id)
    if as_json:
        _json(found)
        return
    rows = [(one.created_ns, f"version {one.version}", _version(one)) for one in found.versions]
    rows += [
        (one.at_ns, f"verdict on {one.version}", f"{one.verdict}: {one.reason}")
        for one in found.verdicts
    ]
    rows += [
        (one.at_ns, f"word on {one.version}", f"{one.person}: {one.kind} {one.label} {one.note}")
        for one in found.corrections
    ]
    rows.sort(key=lambda row: row[0])
    _table(("when", "what", "says"), [(_when(at), *rest) for at, *rest in rows], last="says")


# ------------------------------------------------------------------------------------------ inside


def _console(config: Any, assign: Any) -> ConsoleClient:
    from interlatent_live.client import ConsoleClient

    return ConsoleClient.of(resolve_options(config, assign).settings)


def _claim(console: ConsoleClient, name: str) -> Claim:
    """By id, or the newest one about an address."""
    from interlatent_live.errors import UserError

    if "@" not in name:
        return console.claim(name)
    found = list(console.claims(address=name))
    if not found:
        raise UserError(f"there is no claim about {name}; `interlatent-live claims list` has them")
    return max(found, key=lambda one: one.updated_ns)


def _feature(text: str) -> tuple[str, int]:
    from interlatent_live.errors import UserError

    hook_point, _, index = text.partition("@")[0].rpartition("/")
    if not hook_point or not index.isdecimal():
        raise UserError(f"{text!r} is no feature; write HOOK_POINT/INDEX, such as hidden.1/17")
    return hook_point, int(index)


def _newest_run(console: ConsoleClient) -> str:
    from interlatent_live.errors import UserError

    runs = [one for one in console.runs() if not one.ended]
    if not runs:
        raise UserError("no run is going on; a claim needs later episodes to be checked")
    return max(runs, key=lambda one: one.last_seen_ns).run_id


def _user() -> str:
    import getpass

    from interlatent_live.errors import UserError

    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:
        raise UserError("this user has no name here; give --person") from error


def _pointed(error: UserError, predicate: str) -> UserError:
    """With a caret under the mistake, where the console says where it is."""
    from interlatent_live.errors import UserError

    position = getattr(error, "position", None)
    if position is None:
        return error
    return UserError(f"{error}\n  {predicate}\n  {' ' * position}^")


def _text_rows(text: ClaimText) -> list[tuple[str, str]]:
    seen = f"{text.episodes_heldout} later episodes, {text.bouts} bouts"
    rows = [
        ("says", text.label),
        ("", text.description),
        ("predicate", text.predicate or "none: the writer abstained"),
        ("verdict", f"{text.verdict}: {text.reason}"),
        ("accuracy", f"{_accuracy(text)} on {seen}"),
        *_recent(text.recent),
        *_opinion(text.second_opinion),
        ("writer", text.writer),
        *_cost(text.cost),
    ]
    if text.precision is not None:
        rows.append(("precision", f"{text.precision:.2f}, recall {_two(text.recall)}"))
    if text.loses_to_its_rule:
        better = _two(text.best_rule_balanced_accuracy)
        rows.append(("but", f"the rule {text.best_rule} does better: {better}"))
    rows += [("wording", f"{one['text']} ({one['support']})") for one in text.clauses]
    return rows


def _recent(recent: Recent | None) -> list[tuple[str, str]]:
    if recent is None or recent.balanced_accuracy is None:
        return []
    low, high = _two(recent.balanced_accuracy_lo), _two(recent.balanced_accuracy_hi)
    worth = f"{recent.effective_units:.0f} episodes' worth of the newest rows"
    return [("lately", f"{recent.balanced_accuracy:.2f} [{low}, {high}] on {worth}")]


def _opinion(found: SecondOpinion | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    low, high = _two(found.balanced_accuracy_lo), _two(found.balanced_accuracy_hi)
    told = f"{_two(found.balanced_accuracy)} [{low}, {high}]"
    if found.reason:
        told = found.reason
    return [("by words", f"{found.judge} tells on from off: {told}")]


def _version(one: Version) -> str:
    return f"{one.writer}: {one.label}; {one.predicate or 'abstains'}"


def _accuracy(text: ClaimText) -> str:
    if text.balanced_accuracy is None:
        return "–"
    low, high = _two(text.balanced_accuracy_lo), _two(text.balanced_accuracy_hi)
    return f"{text.balanced_accuracy:.2f} [{low}, {high}]"


def _two(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _when(at_ns: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _json(value: Any) -> None:
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value), indent=1).decode())


def _table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, last: str, head: bool = True
) -> None:
    """A table without lines; the last column takes what width is left, the others are never cut."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=head)
    for name in columns[:-1]:
        table.add_column(name, no_wrap=True)
    table.add_column(last, ratio=1, overflow="fold")
    for row in rows:
        # Text, not markup: the words are other people's.
        table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    Console(highlight=False).print(table)


def _cost(found: Cost | None) -> list[tuple[str, str]]:
    if found is None or not found.requests:
        return []
    tokens = f"{found.input_tokens} + {found.output_tokens} tokens"
    opinions = f", of it ${found.opinion_dollars:.4f} for second opinions"
    said = f"${found.dollars:.4f} in {found.requests} requests, {tokens}"
    return [("cost", said + (opinions if found.opinion_requests else ""))]
