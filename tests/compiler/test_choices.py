"""An index counts as right where its score is as good as the one the reference chose."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

import npuc
from npuc.choices import Chosen, find
from npuc.errors import ParityError
from npuc.floors import Floor
from npuc.metrics import differences
from npuc.policy import Policy
from npuc.program import Program
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]


def program(body: str, output: str, constants: str = "") -> Program:
    """Parse a graph that reads x (batch, 4, 3) and computes scores s = x + x."""
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
    net (float[batch, 4, 3] x) => ({output}) {constants} {{ s = Add (x, x)  {body} }}"""
    return Program.from_model(ir.from_proto(onnx.parser.parse_model(text)))


def scores(*rows: list[float]) -> dict[str, Array]:
    """Return one call whose scores along the last axis are `rows`, repeated to fill 4 of them."""
    return {"x": np.array([[rows[i % len(rows)] for i in range(4)]], np.float32)}


def settled(given: Program, call: dict[str, Array], ref: object, got: object) -> list[int]:
    name = given.outputs[0].name
    kind = np.dtype(given.outputs[0].dtype)
    chosen = Chosen(given, [call], 16)
    found = chosen.settle(name, call, np.array(ref, kind), np.array(got, kind))
    assert found.dtype == kind
    return [int(v) for v in found.ravel()]


PLAIN = program("y = ArgMax <axis=-1, keepdims=0> (s)", "int64[batch, 4] y")
NEAR = 1e-7
"""Less than the scores' noise floor (one ulp of 1 is 1.2e-7, times 16), and more than none."""


def test_an_index_with_as_good_a_score_is_the_same_choice() -> None:
    call = scores([1, 1 + NEAR, 0], [1, 0.9, 0])
    assert settled(PLAIN, call, [[1, 0, 1, 0]], [[0, 0, 1, 0]]) == [1, 0, 1, 0]
    assert settled(PLAIN, call, [[1, 0, 1, 0]], [[2, 1, 0, 1]]) == [2, 1, 1, 1]


def test_an_index_outside_of_the_axis_is_never_right() -> None:
    call = scores([1, 1, 0])
    assert settled(PLAIN, call, [[0, 0, 0, 0]], [[1, 3, -1, 2]]) == [0, 3, -1, 2]


def test_scores_that_are_all_alike_excuse_nothing() -> None:
    """A model whose scores broke would tie every index with every other."""
    for value in (0.0, 1.0, np.nan):
        call = {"x": np.full((1, 4, 3), value, np.float32)}
        assert settled(PLAIN, call, [[0, 0, 0, 0]], [[1, 2, 0, 1]]) == [1, 2, 0, 1]


@pytest.mark.parametrize(
    ("body", "output", "constants"),
    [
        ("y = ArgMax <axis=2> (s)", "int64[batch, 4, 1] y", ""),
        ("y = ArgMax <axis=1> (s)", "int64[batch, 1, 3] y", ""),
        ("y = ArgMin <axis=1, keepdims=0> (s)", "int64[batch, 3] y", ""),
        ("i = ArgMax <axis=2, keepdims=0> (s) y = Cast <to=6> (i)", "int32[batch, 4] y", ""),
        ("i = ArgMax <axis=2, keepdims=0> (s) y = Cast <to=1> (i)", "float[batch, 4] y", ""),
        ("i = ArgMax <axis=1> (s) y = Transpose <perm=[2,0,1]> (i)", "int64[3, batch, 1] y", ""),
        ("v, y = TopK <axis=1, largest=0> (s, k)", "int64[batch, 2, 3] y", "<int64[1] k = {2}>"),
        (
            "v, i = TopK (s, k) j = Transpose <perm=[0,2,1]> (i) l = Reshape (j, f) "
            "y = Transpose (l)",
            "int64[4, n] y",
            "<int64[1] k = {2}, int64[2] f = {-1, 4}>",
        ),
        ("v, i = TopK <axis=1> (s, k) y = Squeeze (i, k)", "int64[batch, 3] y",
         "<int64[1] k = {1}>"),
    ],
)  # fmt: skip
def test_every_way_to_an_output_is_followed_back(body: str, output: str, constants: str) -> None:
    """Scores full of ties, broken by rounding in two ways: either choice is right."""
    given = program(body, output, constants)
    assert set(find(given)) == {"y"}
    generator = np.random.default_rng(0)
    base = generator.integers(1, 4, (2, 4, 3))
    one, other = ((base + 1e-6 * generator.random(base.shape)).astype(np.float32) for _ in "ab")
    run = OnnxRunner(given)
    reference, candidate = run({"x": one})["y"], run({"x": other})["y"]
    assert not np.array_equal(reference, candidate), "no tie was broken: this checks nothing"
    chosen = Chosen(given, [{"x": one}], 16)
    assert np.array_equal(chosen.settle("y", {"x": one}, reference, candidate), reference)
    opposite = run({"x": -one})["y"]
    found = chosen.settle("y", {"x": one}, reference, opposite)
    assert (found != reference).mean() > 0.3  # the others tie for real, or are equal


def test_a_ranking_that_names_an_index_twice_is_wrong() -> None:
    given = program("v, y = TopK (s, k)", "int64[batch, 4, 2] y", "<int64[1] k = {2}>")
    call = scores([1, 1 + NEAR, 0])
    swapped = settled(given, call, [[[1, 0]] * 4], [[[0, 1]] * 4])
    assert swapped == [1, 0] * 4
    twice = settled(given, call, [[[1, 0]] * 4], [[[0, 0]] * 4])
    assert twice == [0, 0] * 4


@pytest.mark.parametrize(
    ("body", "output"),
    [
        ("i = ArgMax <axis=2> (s) y = Add (i, i)", "int64[batch, 4, 1] y"),
        ("y = Shape (s)", "int64[3] y"),
        ("y, i = TopK (s, k)", "float[batch, 4, 1] y"),
        ("i = ArgMax <axis=2> (s) y = Cast <to=9> (i)", "bool[batch, 4, 1] y"),
    ],
)
def test_what_is_no_chosen_index_is_left_alone(body: str, output: str) -> None:
    given = program(body, output, "<int64[1] k = {1}>")
    assert find(given) == {}
    assert Chosen(given, [], 16).over([]) is None


def test_differences_count_settled_indices_as_equal() -> None:
    call = scores([1, 1 + NEAR, 0], [1, 0.9, 0])
    ref, got = {"y": np.array([[1, 0, 1, 0]])}, {"y": np.array([[0, 1, 1, 0]])}
    (strict,) = differences([ref], [got])
    (fair,) = differences([ref], [got], settle=Chosen(PLAIN, [call], 16).over([call]))
    assert strict.agreement == 0.5 and fair.agreement == 0.75
    assert fair.max_abs == 1, "the other one is as far off as before"


def test_ties_are_those_of_each_output() -> None:
    ref = {"a": np.array([[0.0, 1.0]]), "b": np.array([[0.0, 1.0]])}
    got = {"a": np.array([[1.0, 0.0]]), "b": np.array([[1.0, 0.0]])}
    a, b = differences([ref], [got], {"a": 2.0})
    assert (a.agreement, b.agreement) == (1.0, 0.0)


class Twins(nn.Module):
    """Classifies pixels; every class has a twin whose scores differ by rounding at most."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        scores = self.conv(image)
        # (s + 1/3) - 1/3 is s but for the rounding, in which kernels differ.
        return torch.cat(((scores + 1 / 3) - 1 / 3, scores), dim=1).argmax(dim=1)


@pytest.mark.parametrize("precision", ["float", "int8"])
def test_a_model_full_of_near_ties_compiles(tmp_path: Any, precision: str) -> None:
    """Judged by equality, half of all pixels could differ: int8 codes make all twins equal."""
    torch.manual_seed(0)
    model = Twins().eval()
    images = [torch.randn(1, 1, 8, 8) for _ in range(6)]
    calls = [{"image": image.numpy()} for image in images]
    (built,) = npuc.compile(
        model, target="cpu", precision=precision, inputs=["image=1x1x8x8:float32"],
        output=tmp_path / "m.npuc", samples=calls, calibration=calls,
    )  # fmt: skip
    assert built.report.passed
    assert all(d.agreement == 1 for row in built.report.rows for d in row.original)


def test_a_wrong_class_is_still_found(tmp_path: Any) -> None:
    given = program("y = ArgMax <axis=2, keepdims=0> (s)", "int64[batch, 4] y")
    call = scores([3, 1, 2], [0, 5, 4])
    settle = Chosen(given, [call], 16).over([call])
    right = OnnxRunner(given)(call)
    wrong = {"y": (right["y"] + 1) % 3}
    (found,) = differences([right], [wrong], settle=settle)
    assert found.agreement == 0
    assert Policy().loss().faults([found])
    with pytest.raises(ParityError):
        differences([right], [{"z": right["y"]}], settle=settle)


def suppression(least: str = "0.2") -> Program:
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
    net (float[1, 4, 4] b, float[1, 2, 4] s) => (int32[n, 3] y)
    <int64[1] k = {{4}}, float[1] i = {{0.5}}, float[1] t = {{{least}}}>
    {{ z = Add (s, s) r = NonMaxSuppression (b, z, k, i, t) y = Cast <to=6> (r) }}"""
    return Program.from_model(ir.from_proto(onnx.parser.parse_model(text)))


BOXES = np.array([[[0, 0, 9, 9], [0, 0, 9, 9.5], [20, 20, 30, 30], [50, 50, 60, 60]]], np.float32)
SCORES = np.array([[[0.45, 0.45 + NEAR / 4, 0.3, 0.1 + NEAR / 4], [0, 0, 0.4, 0.2]]], np.float32)


def kept(got: list[list[int]], scores: Array = SCORES) -> float:
    """Return which share of the rows counts as equal, for a reference that ran for real."""
    given, call = suppression(), {"b": BOXES, "s": scores}
    reference = OnnxRunner(given)(call)
    assert reference["y"].tolist() == [[0, 0, 1], [0, 0, 2], [0, 0, 3], [0, 1, 2], [0, 1, 3]]
    answer = {"y": np.array(got, np.int32).reshape(-1, 3)}
    settle = Chosen(given, [call], 16).over([call])
    (found,) = differences([reference], [answer], settle=settle)
    assert not found.fault
    return found.agreement or 0.0


def test_boxes_that_suppression_keeps_are_a_set_with_ties() -> None:
    rows = [[0, 0, 1], [0, 0, 2], [0, 0, 3], [0, 1, 2], [0, 1, 3]]
    assert kept(rows) == kept(rows[::-1]) == 1
    assert kept([[0, 0, 0], *rows[1:]]) == 1, "box 0 is as good as box 1, which it suppresses"
    assert kept([*rows[:2], *rows[3:]]) == 1, "the score of box 3 is at the limit"
    assert kept([[0, 0, 2], *rows[1:]]) == pytest.approx(0.8), "a row twice is one row too many"
    assert kept(rows[1:]) == pytest.approx(0.8)
    assert kept([*rows, [0, 1, 0]]) == pytest.approx(0.8)
    assert kept([[0, 0, 9], [7, 0, 1], *rows[2:]]) == pytest.approx(0.6)
    assert kept([[0, 1, 1], *rows[1:]]) == pytest.approx(0.8), "of the other class"
    assert kept([]) == 0


def test_suppressed_boxes_are_found_only_where_nothing_moved_them() -> None:
    assert set(find(suppression())) == {"y"}
    text = """<ir_version: 10, opset_import: ["" : 20]>
    net (float[1, 4, 4] b, float[1, 2, 4] s) => (int64[3, n] y)
    { r = NonMaxSuppression (b, s) y = Transpose (r) }"""
    assert find(Program.from_model(ir.from_proto(onnx.parser.parse_model(text)))) == {}


def test_scores_that_are_inputs_have_no_noise() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
    net (float[n, 3] x) => (int64[n] y) { y = ArgMax <axis=1, keepdims=0> (x) }"""
    given = Program.from_model(ir.from_proto(onnx.parser.parse_model(text)))
    call = {"x": np.array([[1, 1, 0], [2, 1 + NEAR, 1]], np.float32)}
    assert settled(given, call, [0, 0], [1, 1]) == [0, 1]


def test_noise_moves_neither_the_factors_of_a_resize_nor_a_mask_out_of_range() -> None:
    """Moved by one ulp, the factors are refused by ONNX Runtime and the mask becomes infinite."""
    text = """<ir_version: 10, opset_import: ["" : 20]>
    net (float[1, 3, 2, 2] x) => (int64[1, h, w] y)
    <float[4] f = {1, 1, 2, 2}, float[1] m = {-3.4028234663852886e38}, float[1] e = {1.5}> {
        r = Resize <mode="linear"> (x, , f)  z = Mul (r, e)  q = Max (z, m)
        y = ArgMax <axis=1, keepdims=0> (q) }"""
    given = Program.from_model(ir.from_proto(onnx.parser.parse_model(text)))
    call = {"x": np.random.default_rng(0).normal(size=(1, 3, 2, 2)).astype(np.float32)}
    noise = Chosen(given, [call], 16).ties("y")
    # Between one rounding of the largest score (about 2) and some dozens of them.
    assert 1e-7 < noise < 16 * 1e-5


def test_lowered_indices_are_held_to_the_share_that_is_equal() -> None:
    """Of 512 indices the program moved 12 and lowering another 12: no distance is a limit."""
    original = {"y": np.arange(512)}
    program, lowered = original["y"].copy(), original["y"].copy()
    program[:12], lowered[12:24] = 0, 400
    floor = {"y": Floor(0.0, 0.0, 511.0)}
    so_far = differences([original], [{"y": program}])
    policy = Policy()
    bar, kept = policy.lowering(so_far, floor), policy.kept(so_far, floor)
    assert not bar.faults(differences([{"y": program}], [{"y": lowered}]))
    assert not kept.faults(differences([original], [{"y": lowered}]))
    assert bar.faults(differences([{"y": program}], [{"y": lowered[::-1]}]))
