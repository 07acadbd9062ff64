"""Find recurrences: a product with one constant matrix again and again, each of the last's result.

Passes write LSTM, GRU and RNN out step by step, and so do exporters of hand-written cells. Every
step is the same few operators on single values.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from npuc.targets.tvm import graph
from npuc.targets.tvm import weights as w
from npuc.targets.tvm.graph import dtype_of, is_tensor, is_var, key, number, operator, shape_of
from npuc.targets.tvm.pointwise import OPERATORS, known_step
from npuc.targets.tvm.recurrence_form import Loop, Node, Ref, Sources
from npuc.targets.tvm.recurrence_match import fill, known

LEAST = 4
"""Steps from which a loop is worth it."""

MOST = 64
"""Operators of one step: cells have a dozen, whole layers that share their weights have more."""


class Finder:
    """Looks for recurrences in one main function."""

    def __init__(self, items: Sequence[tuple[Any, Any]], outputs: set[int]):
        self.items = items
        self.sources: Sources = {key(var): expr for var, expr in items}
        self.position = {key(var): at for at, (var, _) in enumerate(items)}
        self._outputs = outputs
        self.users: dict[int, list[int]] = {}
        for at, (_, expr) in enumerate(items):
            for var in {key(v): v for v in graph.parts(expr)}.values():
                self.users.setdefault(key(var), []).append(at)

    def all(self) -> Iterator[Loop]:
        """Yield every recurrence."""
        groups: dict[int, list[int]] = {}
        for at, (_, expr) in enumerate(self.items):
            if operator(expr) == "relax.matmul" and is_var(expr.args[0]):
                groups.setdefault(key(expr.args[1]), []).append(at)
        for positions in groups.values():
            if len(positions) >= LEAST and self._multiplies(positions):
                loop = self._loop(positions)
                if loop is not None:
                    yield loop

    def _multiplies(self, positions: list[int]) -> bool:
        """Whether the products are of [1, rows, depth] by constants, float or of codes."""
        expr = self.items[positions[0]][1]
        left, right = expr.args
        rank = (len(shape_of(left)), len(shape_of(right))) if is_tensor(left) else ()
        if rank != (3, 2) or shape_of(left)[0] != 1 or dtype_of(expr) != "float32":
            return False
        if number(right) is not None:
            return True
        codes = w.codes(right, self.sources)
        lefts = [w.activation(self.items[at][1].args[0], self.sources) for at in positions]
        kinds = {None if a is None else dtype_of(a.tensor) for a in lefts}
        return codes is not None and codes.axis in (None, 1) and len(kinds) == 1 - (None in kinds)

    def _loop(self, positions: list[int]) -> Loop | None:
        anchors = [self.items[at][0] for at in positions]
        lefts = [self.items[at][1].args[0] for at in positions]
        levels = self._levels(anchors)
        found = [
            _Step(self, anchor, number_, levels).walk(target)
            for number_, (anchor, target) in enumerate(zip(anchors, lefts[1:], strict=False), 1)
        ]
        walked = [nodes for nodes in found if nodes is not None]
        if len(walked) < len(found):
            return None
        numbers = [{key(node.var): at for at, node in enumerate(nodes)} for nodes in walked]
        template = [known(node, numbers[0]) for node in walked[1]]
        target = len(template) - 1
        variables = [{at: node.var for at, node in enumerate(nodes)} for nodes in walked]
        loop = Loop(anchors, lefts[0], template, target, variables)
        last = self._last(loop, numbers[-1])
        good = last is not None and fill(loop, [*walked, last], numbers, self.sources)
        return loop if good and self._placed(loop) else None

    def _levels(self, anchors: list[Any]) -> dict[int, int]:
        """Return, per variable, the number of the last product that it follows from, from 1."""
        numbers = {key(anchor): at for at, anchor in enumerate(anchors, 1)}
        levels: dict[int, int] = {}
        for var, expr in self.items[self.position[key(anchors[0])] :]:
            level = max((levels.get(key(v), 0) for v in graph.parts(expr)), default=0)
            level = numbers.get(key(var), level)
            if level:
                levels[key(var)] = level
        return levels

    def _last(self, loop: Loop, before: dict[int, int]) -> list[Node | None] | None:
        """Return the nodes of the step after the last product, which no product follows."""
        anchor = loop.anchors[-1]
        vars_before = {at: loop.variables[-1][at] for at in before.values()}
        found: dict[int, Node] = {}

        def variable(ref: Ref) -> Any:
            if ref.kind == "anchor":
                return anchor
            if ref.kind == "prev":
                return vars_before[ref.at]
            node = found.get(ref.at) if ref.kind == "node" else None
            return None if node is None else node.var

        for at, node in enumerate(loop.nodes):
            wanted = [variable(ref) for ref in node.args]
            inner = [v for v, ref in zip(wanted, node.args, strict=True) if ref.kind != "outer"]
            if any(v is None for v in inner):
                continue
            for candidate in self._candidates(node, inner[0]):
                if all(
                    v is None or (is_var(ref.expr) and key(v) == key(ref.expr))
                    for v, ref in zip(wanted, candidate.args, strict=True)
                ):
                    found[at] = candidate
                    break
        loop.variables.append({at: node.var for at, node in found.items()})
        return [found.get(at) for at in range(len(loop.nodes))]

    def _candidates(self, like: Node, var: Any) -> Iterator[Node]:
        """Yield what reads a variable as a node does, its arguments undecided."""
        for at in self.users.get(key(var), ()):
            user, expr = self.items[at]
            if operator(expr) != operator(like.expr):
                continue
            if like.part is None:
                yield Node(user, expr, tuple(Ref("outer", expr=arg) for arg in expr.args))
                continue
            for inner in self.users.get(key(user), ()):
                part, item = self.items[inner]
                if getattr(item, "index", None) == like.part:
                    yield Node(part, expr, (Ref("outer", expr=expr.args[0]),), like.part)

    def _placed(self, loop: Loop) -> bool:
        """Decide what is stored; False where a user needs it before the loop, or cut to pieces."""
        start = self.begins(loop)
        inside = self.members(loop)
        used: dict[int, list[tuple[int, int]]] = {}
        for step, variables in enumerate(loop.variables):
            for at, var in variables.items():
                users = [u for u in self.users.get(key(var), ()) if u not in inside]
                if key(var) in self._outputs:
                    users.append(len(self.items))
                if users and min(users) < start:
                    return False
                used.setdefault(at, []).extend((step, user) for user in users)
        return all(self._stored(loop, at, uses) for at, uses in used.items() if uses)

    def _stored(self, loop: Loop, at: int, uses: list[tuple[int, int]]) -> bool:
        var = loop.nodes[at].var
        if shape_of(var) != (1, *loop.shape) or dtype_of(var) != "float32":
            return False
        by_user: dict[int, list[int]] = {}
        for step, user in uses:
            by_user.setdefault(user, []).append(step)
        long = [sorted(steps) for steps in by_user.values() if len(steps) > 1]
        if any(steps != list(range(loop.steps)) for steps in long):
            return False
        if sum(len(steps) == 1 for steps in by_user.values()) > 2:
            return False
        backward = [self._backward(loop, at, user) for user, s in by_user.items() if len(s) > 1]
        if None in backward or len(set(backward)) > 1:
            return False
        loop.outputs[at] = bool(backward and backward[0])
        return True

    def _backward(self, loop: Loop, at: int, user: int) -> bool | None:
        """Whether a concatenation joins all steps last to first; None where it does not at all."""
        if user == len(self.items):
            return None
        expr = self.items[user][1]
        if operator(expr) != "relax.concat" or int(expr.attrs.axis or 0) != 0:
            return None
        keys = [key(v) for v in graph.parts(expr)]
        wanted = [key(variables[at]) for variables in loop.variables]
        for order, back in ((wanted, False), (wanted[::-1], True)):
            if order[0] in keys:
                first = keys.index(order[0])
                if keys[first : first + len(order)] == order:
                    return back
        return None

    def begins(self, loop: Loop) -> int:
        """Return the position in main after which nothing but the loop itself is missing."""
        return max(self.position[key(var)] for var in loop.variables[0].values())

    def members(self, loop: Loop) -> set[int]:
        """Return the positions in main of all that the loop computes."""
        found = {self.position[key(var)] for var in loop.anchors}
        for variables in loop.variables:
            for at, var in variables.items():
                found.add(self.position[key(var)])
                if loop.nodes[at].part is not None:
                    tuple_ = self.items[self.position[key(var)]][1].tuple_value
                    found.add(self.position[key(tuple_)])
        return found


@dataclass
class _Step:
    """Walks back from what the next product multiplies to this step's product."""

    finder: Finder
    anchor: Any
    level: int
    levels: dict[int, int]

    def walk(self, target: Any) -> list[Node] | None:
        """Return the operators in between, each after those that it reads; None for others."""
        self._nodes: list[Node] = []
        self._index: dict[int, int] = {}
        self._good = True
        found = self._ref(target)
        return self._nodes if self._good and found.kind == "node" else None

    def _ref(self, expr: Any) -> Ref:
        if not self._good or not is_var(expr) or self.levels.get(key(expr), 0) != self.level:
            return Ref("outer", expr=expr)
        if key(expr) == key(self.anchor):
            return Ref("anchor", expr=expr)
        if key(expr) not in self._index:
            self._add(expr)
        return Ref("node", self._index.get(key(expr), 0), expr)

    def _add(self, var: Any) -> None:
        source, part = self.finder.sources[key(var)], None
        if hasattr(source, "tuple_value"):
            part, tuple_ = int(source.index), source.tuple_value
            source = self.finder.sources.get(key(tuple_)) if is_var(tuple_) else None
        if len(self._nodes) >= MOST or not is_tensor(var) or not _computes(source, part):
            self._good = False
            return
        if part is None and any(shape_of(a) != shape_of(var) for a in _args(source) if is_var(a)):
            self._good = False
            return
        args = tuple(self._ref(arg) for arg in _args(source))
        self._index[key(var)] = len(self._nodes)
        self._nodes.append(Node(var, source, args, part))


def _args(expr: Any) -> list[Any]:
    single = operator(expr) in ("relax.clip", "relax.split")
    return list(expr.args[:1] if single else expr.args)


def _computes(expr: Any, part: int | None) -> bool:
    """Whether the kernel computes an operator."""
    name = operator(expr)
    if part is not None:
        return name == "relax.split" and int(expr.attrs.axis) in (
            -1,
            len(shape_of(expr.args[0])) - 1,
        )
    if name == "relax.quantize":
        return known_step(expr) is not None and dtype_of(expr) in ("int8", "uint8")
    if name == "relax.dequantize":
        return all((a := number(arg)) is not None and a.size == 1 for arg in expr.args[1:])
    known = name in OPERATORS or name == "relax.clip"
    return known and all(dtype_of(arg) == "float32" for arg in _args(expr))
