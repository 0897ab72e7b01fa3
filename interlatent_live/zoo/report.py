"""An entry's report: what was run and measured, put together, with what was *not* found.

``docs/zoo/NAME.json`` holds the figures, ``docs/zoo/NAME.md`` shows them; both come from the files
that ``zoo run`` and ``zoo evaluate`` left, and nothing is measured here.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.environments.metric_packs import metric_pack_for
from interlatent_live.errors import UserError
from interlatent_live.policies.files import load_policy

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from interlatent_live.zoo.entry import ZooEntry

SCHEMA: Final = 1
LIVE: Final = "live.json"
EVALUATION: Final = "evaluation.json"
SHOWN_CLAIMS: Final = 25
SHOWN_LINES: Final = 12


def description_lines(entry: ZooEntry) -> list[str]:
    """What an entry is made of, for people."""
    policy = _policy_facts(entry)
    specs = metric_pack_for(entry.environment).specs
    training = entry.training
    shipped = ", ".join(entry.shipped) or f"none; `interlatent-live zoo train {entry.name}`"
    return [
        f"{entry.name}: {entry.title}",
        f"environment   {entry.environment}, {_version(entry)}",
        f"policy        {policy['name']}: {policy['algorithm']}, {policy['network']}",
        f"  from        {policy['source']} ({policy['licence']})",
        f"  hash        {policy['hash']}",
        f"  return      {policy['measured']}",
        f"hook points   {', '.join(entry.hook_points)}",
        f"transcoders   {shipped}",
        (
            f"recipe        {training.episodes} episodes, F = {training.n_features}, k = "
            f"{training.k}, {training.seeds} seeds, {training.recipe.steps} steps, head weight "
            f"{training.recipe.head_weight:g}"
        ),
        f"live          {entry.live.copies} copies at {entry.live.control_hz:g} Hz",
        f"metrics       {', '.join(_named(spec.name, spec.unit) for spec in specs)}",
        *(f"question      {one.name}: {one.target}" for one in entry.questions),
    ]


def live_lines(report: dict[str, Any]) -> list[str]:
    """What a live run found: the most frequent features, verified claims, narration."""
    features = sorted(report["features"], key=lambda one: -float(one["density"] or 0))
    lines = ["features, by the share of steps they are on in:"]
    lines += [
        f"  {one['address'].partition('@')[0]}  {one['density']:.1%}"
        for one in features[:SHOWN_LINES]
    ]
    verified = _verified_live(report)
    lines.append(f"verified claims ({len(verified)}):")
    lines += [
        f"  {one['address'].partition('@')[0]}  {one['label']}  (balanced accuracy "
        f"{one['balanced_accuracy']:.2f}, precision {one['precision']:.2f})"
        for one in verified[:SHOWN_LINES]
    ]
    lines.append(f"narration ({len(report['narration'])} lines), the last:")
    lines += [f"  {line['text']}" for line in report["narration"][-SHOWN_LINES:]]
    return lines


def evaluation_lines(found: dict[str, Any]) -> list[str]:
    """What was measured away from the live run, for people."""
    lines: list[str] = []
    for hook, judged in found["judged"].items():
        fidelity = found["fidelity"].get(hook)
        if fidelity is not None:
            lines.append(f"{hook}: {_fidelity_sentence(fidelity)}")
        lines.append(f"{hook}: {_claims_sentence(judged['claims'])}")
        lines += [f"  {line}" for line in _answers(judged["questions"])]
    return lines


def make_report(entry: ZooEntry, work: Path) -> dict[str, Any]:
    """Everything that is known of an entry, as plain values.

    Raises:
        UserError: when the evaluation has not been done, or it or the live run was of another
            policy or of other transcoders.
    """
    found = _read(entry, work, EVALUATION, "evaluate")
    # An evaluation alone says what the dictionary is worth; the report then says what is missing.
    live = _read(entry, work, LIVE, "run") if (work / LIVE).exists() else None
    policy = _policy_facts(entry)
    for name, result in ((LIVE, live), (EVALUATION, found)):
        if result is not None and result["policy_hash"] != policy["hash"]:
            raise UserError(
                f"{work / name} is of policy {result['policy_hash']}, {entry.name} has "
                f"{policy['hash']}: run it again"
            )
    if live is not None:
        ran = {hook["name"]: hook["transcoder"] for hook in live["hook_points"]}
        if ran != found["transcoders"]:
            raise UserError(
                f"{work / LIVE} ran with the transcoders {ran}, {work / EVALUATION} is about "
                f"{found['transcoders']}: run `interlatent-live zoo run {entry.name}` again"
            )
    made: dict[str, Any] = {
        "schema": SCHEMA,
        "name": entry.name,
        "title": entry.title,
        "environment": entry.environment,
        "environment_version": _version(entry),
        "policy": policy,
        "hook_points": list(entry.hook_points),
        "metrics": len(metric_pack_for(entry.environment).specs),
        "transcoders": found["transcoders"],
        "live": None if live is None else _live_facts(entry, live),
        "fidelity": found["fidelity"],
        "judged": found["judged"],
        **{name: found[name] for name in ("decoding", "precursors") if name in found},
        "machine": found["machine"],
        "versions": found["versions"],
    }
    made["not_found"] = not_found(made)
    return made


def _read(entry: ZooEntry, work: Path, name: str, command: str) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = json.loads((work / name).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{work / name} is not there: run `interlatent-live zoo {command} {entry.name}` first"
        ) from error
    return loaded


def _policy_facts(entry: ZooEntry) -> dict[str, Any]:
    loaded = load_policy(entry.policy)
    spec = loaded.module.spec
    provenance = loaded.provenance
    return {
        "name": loaded.name,
        "algorithm": provenance.algorithm,
        "network": spec.network,
        "adapter": spec.adapter.value,
        "source": provenance.source,
        "licence": provenance.licence,
        "hash": loaded.policy_hash,
        "measured": provenance.measured,
    }


def _version(entry: ZooEntry) -> str:
    return entry.environment_version if entry.installed else f"extra {entry.extra}, not installed"


def _named(name: str, unit: str) -> str:
    return f"{name} [{unit}]" if unit else name


def _live_facts(entry: ZooEntry, live: dict[str, Any]) -> dict[str, Any]:
    agent = live["agent"]
    wanted = entry.live.control_hz
    reached = live["steps"]["sent"] / agent["copies"] / agent["wall_s"]
    cost = live["agent_step_us"]
    return {
        "agent": agent,
        "steps": live["steps"],
        "hz_wanted": wanted,
        "hz_asked": agent["control_hz"],
        "hz_reached": reached,
        "latency_ms": live["latency_ms"],
        "agent_step_us": cost,
        "tap_overhead_us": cost["tap_on"] - cost["tap_off"],
        "fvu": live["fvu"],
        "fvu_affine": live["fvu_affine"],
        "claims": live["claims"],
        "time_to_first_verified_claim_s": live["time_to_first_verified_claim_s"],
        "narration_lines": len(live["narration"]),
        "narration": [line["text"] for line in live["narration"][-SHOWN_LINES:]],
        "verified": _verified_live(live)[:SHOWN_CLAIMS],
    }


def _verified_live(live: dict[str, Any]) -> list[dict[str, Any]]:
    claims = [
        {"address": one["address"], **one["claim"]}
        for one in live["features"]
        if one["claim"] and one["claim"]["verdict"] == "verified"
    ]
    return sorted(claims, key=lambda one: -float(one["balanced_accuracy"]))


# ------------------------------------------------------------------------------- what was not found


def not_found(made: dict[str, Any]) -> list[str]:
    """What one might have hoped for and the figures do not show, in sentences."""
    out: list[str] = []
    out += _live_missing(made["live"])
    for hook, fidelity in made["fidelity"].items():
        if not fidelity["gate"]["passed"]:
            out.append(f"At `{hook}` the transcoder fails its gate: {fidelity['gate']['verdict']}")
    unmeasured = [hook for hook in made["judged"] if hook not in made["fidelity"]]
    out += [f"Fidelity at `{hook}` was not measured." for hook in unmeasured]
    for hook, judged in made["judged"].items():
        out += _claims_missing(hook, judged["claims"])
        for answer in judged["questions"]:
            out += _answer_missing(answer)
    for hook, decoded in made.get("decoding", {}).items():
        out += _decoding_missing(hook, decoded)
    for hook, found in made.get("precursors", {}).items():
        out += _precursors_missing(hook, found)
    return out


def _live_missing(live: dict[str, Any] | None) -> list[str]:
    if live is None:
        return ["No live run is part of this report."]
    out = []
    if live["hz_reached"] < 0.95 * live["hz_wanted"]:
        out.append(
            f"The run did not keep its control rate: {live['hz_reached']:.1f} steps per second and "
            f"copy where {live['hz_wanted']:g} are wanted."
        )
    if not live["claims"]["verified"]:
        out.append("No claim was verified in the live run.")
    return out


def _decoding_missing(hook: str, decoded: list[dict[str, Any]]) -> list[str]:
    """Metrics that the layer tells no better than its input, or than an untrained layer."""
    out = []
    for source, words in (("input", "the input"), ("untrained", "an untrained layer")):
        known = [one for one in decoded if one["layer"]["low"] is not None]
        names = [one["metric"] for one in known if one["layer"]["low"] <= one[source]["value"]]
        if names:
            out.append(f"`{hook}` is not shown to tell better than {words}: {', '.join(names)}.")
    return out


def _precursors_missing(hook: str, found: dict[str, Any]) -> list[str]:
    best = {kind: _best_recall(found, kind) for kind in ("feature", "unit", "metric", "probe")}
    out = [
        f"At `{hook}`, a {kind} announces failures at least as well as the best feature: recall "
        f"{best[kind]:.0%} against {best['feature']:.0%}."
        for kind in ("unit", "metric", "probe")
        if best[kind] >= best["feature"]
    ]
    out.append(
        "Failures were brought about by pushes only; falls of other policies were not looked at."
    )
    return out


def _best_recall(found: dict[str, Any], kind: str) -> float:
    return max(
        (
            one["recall"]["value"]
            for one in found["alarms"]
            if one["kind"] == kind and one["recall"]
        ),
        default=0.0,
    )


def _claims_missing(hook: str, claims: dict[str, Any]) -> list[str]:
    unexplained = claims["eligible"] - claims["verified"]
    out = [
        (
            f"At `{hook}`, {unexplained} of {claims['eligible']} eligible features have no "
            "verified claim: what they stand for is not known."
        )
    ]
    for control in claims["controls"]:
        low = control["difference"]["low"]
        if low is None or low <= 0:
            out.append(
                f"The dictionary at `{hook}` is not shown to verify more often than "
                f"{control['name']} at the same densities ({_share(claims['share'])} against "
                f"{_share(control['share'])})."
            )
    return out


def _answer_missing(answer: dict[str, Any]) -> list[str]:
    name = answer["name"]
    if "feature" not in answer:
        return [f"“{name}”: {answer['reason']}."]
    out = []
    feature, unit = answer["feature"]["auroc"]["value"], answer["unit"]["auroc"]["value"]
    if feature <= unit:
        out.append(
            f"“{name}”: the best single unit tells it at least as well as the best feature (AUROC "
            f"{unit:.2f} against {feature:.2f})."
        )
    claim = answer.get("claim")
    if claim is not None and claim.get("verdict") != "verified":
        out.append(f"“{name}”: no feature verifies it as a claim ({claim['reason']}).")
    return out


# ------------------------------------------------------------------------------------------- words


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _pm(value: dict[str, float]) -> str:
    return f"{value['mean']:,.1f} ± {value['standard_error']:.1f}"


def _fidelity_sentence(fidelity: dict[str, Any]) -> str:
    median = fidelity["median"]
    parts = [
        (
            f"{fidelity['group']}: FVU {median['fvu']:.4f} where an affine map leaves "
            f"{median['fvu_affine']:.4f}, L0 {median['l0']:.1f}"
        )
    ]
    if fidelity["original_return"] is not None:
        own = fidelity["original_return"]
        parts.append(
            f"return {_pm(own)} of the policy, {median['return']:,.1f} through the transcoder, "
            f"{_pm(fidelity['mean_ablated_return'])} with the hook point ablated, over "
            f"{own['episodes']} paired seeds and {median['seeds']} training seed(s); "
            + ("equivalent" if median.get("equivalent") else "not shown to be equivalent")
        )
    return "; ".join(parts)


def _claims_sentence(claims: dict[str, Any]) -> str:
    controls = ", ".join(f"{one['name']} {_share(one['share'])}" for one in claims["controls"])
    return (
        f"{claims['verified']} of {claims['eligible']} eligible features have a verified claim "
        f"({_share(claims['share'])}) on {claims['judged_on']} later episodes or blocks; controls "
        f"at the same densities: {controls}"
    )


def _answers(questions: Iterable[dict[str, Any]]) -> list[str]:
    lines = []
    for one in questions:
        if "feature" not in one:
            lines.append(f"{one['name']}: {one['reason']}")
            continue
        text = (
            f"{one['name']} ({one['share_of_steps']:.1%} of the steps): best feature "
            f"{one['feature']['index']} AUROC {_bounds(one['feature']['auroc'])}, best unit "
            f"{one['unit']['index']} {_bounds(one['unit']['auroc'])}"
        )
        claim = one.get("claim")
        if claim is not None and "feature" in claim:
            text += (
                f"; as a claim about feature {claim['feature']}: {claim['verdict']}, balanced "
                f"accuracy {_bounds(claim['balanced_accuracy'])}, precision "
                f"{_number(claim['precision'])}, p {claim['p']:.3f}"
            )
        lines.append(text)
    return lines


def _bounds(interval: dict[str, Any]) -> str:
    if interval["value"] is None:
        return "undefined"
    if interval["low"] is None:
        return f"{interval['value']:.3f}"
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


# ---------------------------------------------------------------------------------------- Markdown


def write_files(made: dict[str, Any], out: Path) -> tuple[Path, Path]:
    """Write ``NAME.json`` and ``NAME.md``; the figures of the second are those of the first."""
    out.mkdir(parents=True, exist_ok=True)
    paths = out / f"{made['name']}.json", out / f"{made['name']}.md"
    text = json.dumps(made, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    paths[0].write_text(text, encoding="utf-8")
    paths[1].write_text(markdown(made), encoding="utf-8")
    return paths


def markdown(made: dict[str, Any]) -> str:
    """The report for people."""
    policy, live = made["policy"], made["live"]
    lines = [
        f"# {made['title']}",
        "",
        (
            f"Made by `interlatent-live zoo report {made['name']}`; the figures are in "
            f"[{made['name']}.json]({made['name']}.json)."
        ),
        "",
        "| | |",
        "| --- | --- |",
        f"| environment | `{made['environment']}`, {made['environment_version']} |",
        f"| policy | {policy['algorithm']}, {policy['network']}, adapter {policy['adapter']} |",
        f"| source, licence | {policy['source']}, {policy['licence']} |",
        f"| hash | `{policy['hash']}` |",
        f"| return | {policy['measured']} |",
        f"| hook points | {', '.join(f'`{hook}`' for hook in made['hook_points'])} |",
        *(f"| transcoder at `{hook}` | `{one}` |" for hook, one in made["transcoders"].items()),
        "",
        "## What was not found",
        "",
        *(f"- {sentence}" for sentence in made["not_found"]),
    ]
    if live is not None:
        lines += ["", "## Live", "", *_live_markdown(made["name"], live)]
    for hook, judged in made["judged"].items():
        lines += ["", f"## `{hook}`", ""]
        fidelity = made["fidelity"].get(hook)
        if fidelity is not None:
            lines += [f"{_fidelity_sentence(fidelity)}. {fidelity['gate']['verdict']}", ""]
        if judged["questions"]:
            lines += ["### Questions", "", *_questions_markdown(judged["questions"]), ""]
        lines += _claims_markdown(judged["claims"])
        if fidelity is not None:
            lines += _strongest_markdown(fidelity)
    for hook, decoded in made.get("decoding", {}).items():
        lines += ["", *_decoding_markdown(hook, decoded)]
    for hook, found in made.get("precursors", {}).items():
        lines += ["", *_precursors_markdown(hook, found)]
    for picture in made.get("pictures", ()):
        lines += ["", f"![{picture['caption']}]({picture['file']})", "", picture["caption"]]
    return "\n".join(lines) + "\n"


def _live_markdown(name: str, live: dict[str, Any]) -> list[str]:
    steps, agent, cost = live["steps"], live["agent"], live["agent_step_us"]
    latency = live["latency_ms"]["step_to_feature"]
    claims = live["claims"]
    lines = [
        (
            f"`interlatent-live zoo run {name}`: {agent['copies']} copies, {agent['episodes']} "
            f"episodes in {agent['wall_s']:.0f} s at {live['hz_reached']:.1f} steps per second and "
            f"copy (control rate {live['hz_wanted']:g})."
        ),
        "",
        "| what | figure |",
        "| --- | ---: |",
        f"| steps sent, encoded | {steps['sent']:,}, {steps['encoded']:,} |",
        (
            f"| dropped and declared, lost undeclared | {steps['dropped_declared']}, "
            f"{steps['gaps_undeclared']} |"
        ),
        f"| step → feature p50, p99 | {latency['p50']:.1f} ms, {latency['p99']:.1f} ms |",
        f"| policy step with tap, without | {cost['tap_on']:.0f} µs, {cost['tap_off']:.0f} µs |",
        f"| live FVU, affine | {_figure(live['fvu'])}, {_figure(live['fvu_affine'])} |",
        (
            f"| features live, eligible, verified | {claims['live']}, {claims['eligible']}, "
            f"{claims['verified']} |"
        ),
        f"| lines of narration | {live['narration_lines']} |",
    ]
    if live["narration"]:
        lines += ["", "Narration, the last lines:", ""]
        lines += [f"> {text}  " for text in live["narration"][-6:]]
    if live["verified"]:
        lines += ["", "Claims that this run verified, the most accurate first:", ""]
        lines += [
            "| feature | claim | balanced accuracy | precision |",
            "| --- | --- | ---: | ---: |",
        ]
        lines += [
            f"| {one['address'].partition('@')[0]} | {one['label']} | "
            f"{one['balanced_accuracy']:.2f} | {one['precision']:.2f} |"
            for one in live["verified"][:10]
        ]
    return lines


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"


def _questions_markdown(questions: list[dict[str, Any]]) -> list[str]:
    lines = [
        (
            "Feature and unit are those that tell it best on the calibration episodes; the AUROC "
            "is on later ones. The claim is the target as it stands, about the feature that it "
            "fits best."
        ),
        "",
        "| question | target | share of steps | best feature | best unit | as a claim |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for one in questions:
        if "feature" not in one:
            share = f"{one['share_of_steps']:.1%}"
            lines.append(f"| {one['name']} | `{one['target']}` | {share} | | | {one['reason']} |")
            continue
        claim = one.get("claim")
        said = "not asked: it is about the future"
        if claim is not None:
            said = claim.get("reason", "")
            if "feature" in claim:
                said = (
                    f"{claim['verdict']}: feature {claim['feature']}, balanced accuracy "
                    f"{_bounds(claim['balanced_accuracy'])}, precision "
                    f"{_number(claim['precision'])}, recall {_number(claim['recall'])}, "
                    f"p {claim['p']:.3f}"
                )
        lines.append(
            f"| {one['name']} | `{one['target']}` | {one['share_of_steps']:.1%} | "
            f"{one['feature']['index']}: {_bounds(one['feature']['auroc'])} | "
            f"{one['unit']['index']}: {_bounds(one['unit']['auroc'])} | {said} |"
        )
    return lines


def _claims_markdown(claims: dict[str, Any]) -> list[str]:
    lines = [
        "### Verified claims",
        "",
        f"{_claims_sentence(claims)}. Null: {claims['null']}, {claims['draws']} draws.",
        "",
        "| control | share | difference |",
        "| --- | ---: | ---: |",
        *(
            f"| {one['name']} | {_share(one['share'])} | {_bounds(one['difference'])} |"
            for one in claims["controls"]
        ),
    ]
    if claims["claims"]:
        lines += [
            "",
            "| feature | on when | balanced accuracy | precision | recall | density |",
            "| ---: | --- | ---: | ---: | ---: | ---: |",
        ]
        lines += [
            f"| {one['feature']} | {one['words']} | {_bounds(one['balanced_accuracy'])} | "
            f"{_number(one['precision'])} | {_number(one['recall'])} | {one['density']:.1%} |"
            for one in claims["claims"][:SHOWN_CLAIMS]
        ]
    return lines


def _decoding_markdown(hook: str, decoded: list[dict[str, Any]]) -> list[str]:
    return [
        f"### What a line reads off `{hook}`",
        "",
        (
            "R² of ridge probes on test episodes: of the layer, of the network's input, and of "
            "the same layer of a network that was never trained."
        ),
        "",
        "| metric | layer | input | untrained |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {_named(one['metric'], one['unit'])} | {_bounds(one['layer'])} | "
            f"{_bounds(one['input'])} | {_bounds(one['untrained'])} |"
            for one in decoded
        ),
    ]


def _precursors_markdown(hook: str, found: dict[str, Any]) -> list[str]:
    lines = [
        f"### What announces a failure, at `{hook}`",
        "",
        (
            f"{found['failures']} failures in {found['episodes']} episodes; each alarm was chosen "
            f"on {found['chosen_on']} of them at one false alarm in ten minutes and is reported on "
            f"the others. Announced: an alarm in the {found['horizon_s']:g} s before. Near misses "
            "are the highest tilts that end well."
        ),
        "",
        (
            "| alarm | announced | recall | failure, given alarm | false alarms per 10 min | "
            "alarms per hour | median lead | near misses alarmed |"
        ),
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in found["alarms"]:
        lead = one["median_lead_s"]
        recall = "–" if one["recall"] is None else _bounds(one["recall"])
        lines.append(
            f"| {one['kind']} {one['name']} | {one['announced']} of {one['failures']} | {recall} | "
            f"{_share(one['failure_given_alarm'])} | {_number(one['false_alarms_per_10_min'])} | "
            f"{one['alarms_per_hour']:.0f} | {'–' if lead is None else f'{lead:.2f} s'} | "
            f"{_share(one['near_misses_alarmed'])} of {one['near_misses']} |"
        )
    return lines


def _strongest_markdown(fidelity: dict[str, Any]) -> list[str]:
    words = {
        row["feature"]: row for row in fidelity["strongest"] if row["changes_action"] is not None
    }
    discrete = bool(words)
    head = "changes the action in" if discrete else "moves the action by (rms)"
    return [
        "",
        "### Features that move the action most",
        "",
        (
            f"Of `{fidelity['strongest_of'][:19]}…`: taken out where it is on, the feature's "
            "direct effect on the action."
        ),
        "",
        f"| feature | density | {head} |",
        "| ---: | ---: | ---: |",
        *(
            f"| {row['feature']} | {row['density']:.1%} | "
            + (f"{row['changes_action']:.0%} |" if discrete else f"{row['action_change']:.3f} |")
            for row in fidelity["strongest"]
        ),
    ]
