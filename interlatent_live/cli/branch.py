"""``interlatent-live branch``: the same moment with and without an intervention."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def branch(
    policy: Annotated[
        str, typer.Argument(help="Built-in policy, policy folder, file or module:function.")
    ],
    transcoder: Annotated[
        Path, typer.Option("--transcoder", "-t", help="Folder of a transcoder of this policy.")
    ],
    feature: Annotated[
        list[int], typer.Option("--feature", "-f", help="Which; give it once per feature.", min=0)
    ],
    steer: Annotated[float | None, typer.Option(help="What is added to each feature.")] = None,
    clamp: Annotated[
        float | None, typer.Option(help="What each feature is held at.", min=0.0)
    ] = None,
    scale: Annotated[float | None, typer.Option(help="Factor of each feature.")] = None,
    ablate: Annotated[bool, typer.Option("--ablate", help="Take the features out.")] = False,
    while_on: Annotated[
        bool, typer.Option("--while-on", help="Act only in steps in which the feature is on.")
    ] = False,
    max_norm: Annotated[
        float, typer.Option(help="Bound on the norm of what is added in each step.", min=0.0)
    ] = 1e3,
    env: Annotated[str, typer.Option(help="Gymnasium id, if the policy does not say.")] = "",
    seed: Annotated[int, typer.Option(help="Of the episode.", min=0)] = 0,
    at: Annotated[int, typer.Option(help="Steps before the moment.", min=0)] = 100,
    steps: Annotated[int, typer.Option(help="Steps after it.", min=1)] = 200,
    lasts: Annotated[
        int | None, typer.Option(help="Steps the intervention lasts; all without it.", min=1)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="JSON file; the plot lies beside it as .svg. "
            "[default: a new one in the folder of branches that the console's page shows]"
        ),
    ] = None,
    plot: Annotated[bool, typer.Option("--plot/--no-plot", help="Draw it as .svg too.")] = True,
) -> None:
    """Play on from a cloned moment with and without an intervention, and show both.

    MuJoCo, ALE and environments in plain Python; what cannot be cloned is refused.

    Example: interlatent-live branch walker2d -t transcoders/walker -f 12 --steer 2 --out b.json
    """
    import json
    import re
    import time

    import gymnasium

    from interlatent_live.config import load_settings
    from interlatent_live.console.state import branch_folder
    from interlatent_live.errors import UserError
    from interlatent_live.interventions.branches.branching import branch as play
    from interlatent_live.interventions.branches.branching import describe
    from interlatent_live.interventions.branches.plot import draw
    from interlatent_live.interventions.values import FeatureCondition, Intervention, Kind, Plan
    from interlatent_live.transcoders.acting import acting_policy
    from interlatent_live.transcoders.native import check_binding, load_transcoder

    given = {Kind.STEER: steer, Kind.CLAMP: clamp, Kind.SCALE: scale}
    asked = [(kind, value) for kind, value in given.items() if value is not None]
    asked += [(Kind.ABLATE, 0.0)] if ablate else []
    if len(asked) != 1:
        raise UserError("say what to do: one of --steer, --clamp, --scale or --ablate")
    acting = acting_policy(policy, environment=env)
    loaded = load_transcoder(transcoder)
    hook_point, identity = loaded.provenance.hook_point, loaded.transcoder.identity
    check_binding(
        loaded.provenance, identity, policy_hash=acting.policy_hash, hook_point=hook_point
    )
    if not acting.environment:
        raise UserError("the policy does not say its environment; give it with --env")
    items = tuple(
        Intervention(one, *asked[0], FeatureCondition(one) if while_on else None) for one in feature
    )
    plan = Plan(hook_point, identity, items, max_norm)
    made = gymnasium.make(acting.environment, disable_env_checker=True)
    try:
        result = play(
            made, acting, loaded.transcoder, plan, seed=seed, at=at, steps=steps, lasts=lasts
        )
    finally:
        made.close()
    document = {
        "policy": acting.name,
        "policy_hash": acting.policy_hash,
        "environment": acting.environment,
        "intervention": describe(plan),
        "lasts": lasts,
        **result.as_json(),
    }
    what = f"{asked[0][0]} {', '.join(map(str, feature))} at {hook_point}"
    if out is None:
        stem = re.sub(r"[^\w.-]+", "-", f"{acting.name} {what} seed {seed} step {at}")
        out = branch_folder(load_settings()) / f"{stem}-{time.time_ns() // 10**6}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if plot:
        draw(result, f"{acting.name}: {what}", out.with_suffix(".svg"))
    first = result.first_other_action
    print(
        "the actions stay the same"
        if first is None
        else f"the first other action comes {first} steps after the moment"
    )
    for name, track in document["branches"].items():
        print(f"{name}: return {track['return']:.4g} in {track['steps']} steps {track['ended']}")
    print(f"all of it: {out}" + (f" and {out.with_suffix('.svg')}" if plot else ""))
