"""From a failing report to the step, the operator and a small reproduction."""

from npuc.blame.cause import Blame
from npuc.blame.finding import find

__all__ = ["Blame", "find"]
