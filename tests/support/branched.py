"""A document as ``interlatent-live branch`` writes them, of the package's CartPole."""

POLICY = "sha256:ffe25fb9eb8db5d07450a4d368c3322369e7be407c1008926aaa7b23b0eb9482"
TRANSCODER = "sha256:45996cb1a82a"
STEPS = 9


def branch_document(*, seed=0, at=50, value=2.0, shift=0.5):
    """The branch with the intervention differs by ``shift`` a step in one metric and in return."""

    def track(apart):
        return {
            "return": STEPS + apart,
            "steps": STEPS,
            "ended": "",
            "rewards": [1.0 + apart / STEPS] * STEPS,
            "actions": [[1.0]] * STEPS,
            "metrics": {
                "cart_position": [0.1 * i for i in range(STEPS + 1)],
                "pole_angle": [0.01 * i + apart * i for i in range(STEPS + 1)],
            },
        }

    return {
        "policy": "cartpole",
        "policy_hash": POLICY,
        "environment": "CartPole-v1",
        "intervention": [
            {
                "hook_point": "hidden.1", "transcoder": TRANSCODER, "feature": 12,
                "kind": "steer", "value": value, "condition": None, "predicate": None,
            }
        ],
        "lasts": None,
        "cloned": "python",
        "seed": seed,
        "at": at,
        "repeats_to_the_bit": True,
        "first_other_action": 4,
        "metrics": ["cart_position", "pole_angle"],
        "branches": {"without": track(0.0), "with": track(shift)},
    }  # fmt: skip
