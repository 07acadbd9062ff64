"""What a recurrence is: the operators of one step, and what each step reads and leaves."""

from dataclasses import dataclass, field
from typing import Any, Literal

from npuc.targets.tvm.graph import shape_of
from npuc.targets.tvm.views import shape_of_type

Sources = dict[int, Any]

Kind = Literal["node", "anchor", "prev", "input", "constant", "outer"]


@dataclass(frozen=True, slots=True)
class Ref:
    """What a step's operator reads: a node of this step or of the one before, by its number;
    the product; a slice of an input or a constant, by its number; `outer`: not decided yet."""

    kind: Kind
    at: int = 0
    expr: Any = None


@dataclass(frozen=True, slots=True)
class Node:
    """An operator of a step. `part` is which part of a split along the last axis it is."""

    var: Any
    expr: Any
    args: tuple[Ref, ...]
    part: int | None = None

    @property
    def offset(self) -> int:
        """Return the column that a split's part begins at."""
        fields = [shape_of_type(f)[-1] for f in self.expr.ty.fields]
        return sum(fields[: self.part])


@dataclass(frozen=True, slots=True)
class Slice:
    """An input cut into steps: where step 0 begins, and how far a step and a row go, in values."""

    base: Any
    first: int
    step: int
    row: int


@dataclass
class Loop:
    """Equal steps. All are [1, rows, columns], and all that is stored has the target's columns."""

    anchors: list[Any]
    """The products, in order."""
    left: Any
    """What the first of them multiplies: the initial state."""
    nodes: list[Node]
    """The operators of a step, each after those that it reads."""
    target: int
    """The node that the next step's product multiplies."""
    variables: list[dict[int, Any]]
    """Per step, node → variable of main."""
    inputs: list[Slice] = field(default_factory=list)
    constants: list[list[Any]] = field(default_factory=list)
    """Per number and step, the constant; one for all steps where they have the same."""
    initial: dict[int, Any] = field(default_factory=dict)
    """What the first step reads as a node of the step before."""
    outputs: dict[int, bool] = field(default_factory=dict)
    """Nodes used elsewhere, and whether their steps are stored last to first."""

    @property
    def steps(self) -> int:
        """Return how many there are."""
        return len(self.anchors)

    @property
    def shape(self) -> tuple[int, int]:
        """Return rows and columns of what is stored."""
        _, rows, columns = shape_of(self.nodes[self.target].var)
        return rows, columns
