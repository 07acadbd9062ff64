"""The kinds of fault a gate finds, as SARIF rules: one per step, per demand, and per exit code."""

import re
from typing import Any

UNDECIDED = "npuc/undecided"

_ERRORS = {
    2: ("usage", "The gate is asked for something that is not there"),
    3: ("load", "The model cannot be read or exported"),
    4: ("unsupported", "The target cannot run the model"),
    5: ("toolchain", "A compiler or simulator is missing or failed"),
    6: ("refused", "The comparison itself is refused"),
    7: ("artifact", "An artifact is damaged"),
    8: ("output", "A result cannot be written"),
}
_BROKEN = ("internal", "npuc ended with a fault of its own")


def parity(stage: str) -> str:
    """Name the rule that a step must answer like the original."""
    return f"npuc/parity/{_slug(stage)}"


def demand(check: str) -> str:
    """Name the rule for a demand of the policy: ``agreement``, ``metric.accuracy``."""
    return f"npuc/demand/{_slug(check)}"


def error(code: int) -> str:
    """Name the rule for an exit code."""
    return f"npuc/{_ERRORS.get(code, _BROKEN)[0]}"


def rule(name: str) -> dict[str, Any]:
    """Return what SARIF shows about a rule."""
    short, full, helped = _about(name)
    return {
        "id": name,
        "name": "".join(part.capitalize() for part in re.findall(r"[A-Za-z0-9]+", name)),
        "shortDescription": {"text": f"{short}."},
        "fullDescription": {"text": full},
        "help": {"text": helped, "markdown": helped},
        "defaultConfiguration": {"level": "error"},
        "properties": {"tags": ["parity", "npu"], "precision": "high"},
    }


def _about(name: str) -> tuple[str, str, str]:
    _, kind, *rest = name.split("/")
    if kind == "parity":
        return (
            f"{rest[0]}: the model no longer answers like the original",
            "The answers after this step are further from the original model's than its bar lets.",
            "`npuc compile MODEL --target TARGET --layers` shows what each layer loses; "
            "`npuc blame` finds the step and the operator.",
        )
    if kind == "demand":
        return (
            f"{rest[0]}: what parity.toml holds the model to does not hold",
            "The artifact's answers miss a demand of the policy on the samples it was given.",
            "Mend the model, or waive the demand in parity.toml with a reason and an expiry date.",
        )
    if name == UNDECIDED:
        return (
            "Too few samples to say whether a rate holds",
            "The interval that holds the true rate has the bar inside. This is no pass.",
            "Give the gate as many samples more as the message says.",
        )
    short = next((s for k, s in _ERRORS.values() if k == kind), _BROKEN[1])
    return (
        short,
        f"{short}: nothing was compared, so nothing is known about its answers.",
        "The message ends with the next command to run.",
    )


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-") or "step"
