"""npuc's own operators inside a Relax module: calls of a function that `legalize` replaces."""

import re
from typing import Any

_ROUND = re.compile(r"RoundTo_e(\d+)m(\d+)(_flushed)?")


def is_rounding(name: str) -> bool:
    """Whether an operator of npuc's domain is a float rounding, as ``RoundTo_e8m7``."""
    return _ROUND.fullmatch(name) is not None


def mark(name: str, data: Any, dtype: str = "") -> Any:
    """Return a call that stands for an elementwise operator of npuc; it keeps the type or names
    another."""
    from tvm import relax

    args: Any = [data]
    kind = relax.TensorType(data.ty.shape, dtype) if dtype else data.ty
    return relax.call_dps_packed(name, args, kind)


def name_of(expr: Any) -> str:
    """Return the name of npuc's operator that a call stands for, or ""."""
    op = getattr(getattr(expr, "op", None), "name", "")
    return str(expr.args[0].global_symbol) if op == "relax.call_dps_packed" else ""


def data_of(expr: Any) -> Any:
    """Return the tensor a marked call works on."""
    return expr.args[1].fields[0]


def rounding(expr: Any) -> tuple[int, int, bool] | None:
    """Return a float rounding's bits of exponent and mantissa, and whether it flushes subnormals.

    None for another expression.
    """
    return form(name_of(expr).removeprefix("ai.npuc."))


def form(name: str) -> tuple[int, int, bool] | None:
    """Return what an operator's name says of its rounding, as `rounding` does."""
    match = _ROUND.fullmatch(name)
    return (int(match[1]), int(match[2]), bool(match[3])) if match else None
