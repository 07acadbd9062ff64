"""What the reader of profiles refuses, in which words, and that it shows all faults at once."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npuc import features
from npuc.errors import NpucError
from npuc.facts import limits as fact_limits
from npuc.facts import onnx_kinds
from npuc.facts import schema as fact_schema
from npuc.profile import DERIVED, FLOATS, Profile

INT8 = """
precisions = { value = ["int8"], grade = "P", source = "s" }
"int8.ops" = { value = ["Conv", "MatMul"], grade = "P", source = "s" }
"int8.weight_range" = { value = [-127, 127], grade = "P", source = "s" }
"int8.weight_per_channel" = { value = true, grade = "P", source = "s" }
"int8.activation_range" = { value = [-128, 127], grade = "P", source = "s" }
"int8.activation_symmetric" = { value = false, grade = "P", source = "s" }
"""


def fact(key: str, value: str) -> str:
    return f'"{key}" = {{ value = {value}, grade = "P", source = "s" }}\n'


def limit(text: str) -> str:
    return f'[[limits]]\ngrade = "P"\nsource = "s"\n{text}'


def profile(facts: str = "", rest: str = "") -> str:
    given = facts or fact("engines", "1")
    return f'name = "x"\ntitle = "X"\n[sources]\ns = "somewhere"\n[facts]\n{given}\n{rest}'


def faults(text: str) -> list[str]:
    """Return the faults found, without the line that names the profile."""
    with pytest.raises(NpucError) as caught:
        Profile.parse(text)
    first, *rest = caught.value.message.split("\n  ")
    assert first == "profile 'x' is malformed:"
    return rest


def test_the_texts_below_are_right_but_for_their_fault() -> None:
    assert Profile.parse(profile()).get("engines") == 1
    scheme = Profile.parse(profile(INT8)).int_scheme
    assert scheme is not None and scheme.weight_range == (-127, 127)
    right = limit('ops = ["Conv"]\nmeasure = "kernel"\nmost = 3\n')
    (bound,) = Profile.parse(profile(rest=right)).limits
    assert (bound.ops, bound.measure, bound.most) == (("Conv",), "kernel", 3)


KEYS = {
    "memory.gb": "no such fact; did you mean 'memory.gib'?",
    "int8.requantise": "no such fact; did you mean 'int8.requantize'?",
    "colour": "no such fact",
    # Free prefixes hold anything but a listed fact misspelled.
    "compiler.requirments": "no such fact; did you mean 'compiler.requirements'?",
    "variants.v2.colour": "no such fact",
}


@pytest.mark.parametrize("key", KEYS)
def test_unknown_facts(key: str) -> None:
    assert faults(profile(fact("engines", "1") + fact(key, "1"))) == [f"{key}: {KEYS[key]}"]


def test_free_facts_and_facts_of_variants() -> None:
    given = fact("hardware.clock_ghz", "2.0") + fact("variants.v2.memory.gib", "8")
    assert Profile.parse(profile(given)).get("variants.v2.memory.gib") == 8
    assert faults(profile(fact("variants.v2.memory.gib", "-8"))) == [
        "variants.v2.memory.gib: -8 is not a number above 0"
    ]


NAMES = ", ".join(sorted({"int8", *FLOATS, *DERIVED}))
VALUES = [
    ("engines", "0", "0 is not a whole number above 0"),
    ("engines", "true", "True is not a whole number above 0"),
    ("peak.int8_tops", '"64"', "'64' is not a number above 0"),
    ("peak.int8_tops", "nan", "nan is not a number above 0"),
    ("memory.type", '""', "'' is not a text without blanks around it"),
    ("power.w", "[60, 40]", "[60, 40] is not a number above 0, or [low, high] of them"),
    ("shapes.static", '"yes"', "'yes' is not true or false"),
    ("onnx.opset_max", "13.0", "13.0 is not a whole number from 1 to 99"),
    ("precisions", "[]", f"[] is not a list of different names among {NAMES}"),
    (
        "precisions",
        '["float", "float"]',
        f"['float', 'float'] is not a list of different names among {NAMES}",
    ),
    ("ops.supported", '["Cnov"]', "'Cnov' is no ONNX operator; did you mean 'Conv'?"),
    ("ops.on_host", '["aten.relu"]', "'aten.relu' is no ONNX operator"),
    ("ops.on_host", '"Relu"', "'Relu' is not a list of different ONNX operators"),
    ("float.formats", "[[5, 24]]", "[[5, 24]] is not a list of [exponent bits 2 to 8, mantissa"
     " bits 1 to 23]"),
    ("int8.overflow", '"clip"', "'clip' is not one of saturate, wrap"),
    ("int8.requantize", '"tflite"', "'tflite' is not one of float32-even, fp19-truncate, "
     "int16-even, q16, tflite-double, tflite-single, two-stage"),
    ("int8.fixed_scales", "{ Softmix = 0.1 }",
     "'Softmix' is no ONNX operator; did you mean 'Softmax'?"),
    ("int8.fixed_scales", "{ Softmax = 0 }",
     "{'Softmax': 0} is not a table from ONNX operator to a scale above 0"),
    ("compiler.requirements", '["torch>=2"]',
     "['torch>=2'] is not a list of different pins, each NAME==VERSION"),
    ("compiler.python", '"3.10+"', "'3.10+' is not bounds like \">=3.10,<3.14\""),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "words"), VALUES)
def test_values_of_the_wrong_kind(key: str, value: str, words: str) -> None:
    assert faults(profile(fact(key, value))) == [f"{key}: {words}"]


SAID = [
    ('engines = 1', "engines: needs grade, source, value; is 1"),
    ('engines = { value = 1, source = "s" }', "engines: needs grade"),
    ('engines = { value = 1, grade = "P" }', "engines: needs source"),
    ('engines = { value = 1, grade = "Q", source = "s" }',
     "engines: grade 'Q' is none of P, S, I, A"),
    ('engines = { value = 1, grade = ["P"], source = "s" }',
     "engines: grade ['P'] is none of P, S, I, A"),
    ('engines = { value = 1, grade = "P", source = "t" }',
     "engines: source 't' is not listed under [sources]"),
    ('engines = { value = 1, grade = "P", source = "s", note = "" }', "engines: unknown 'note'"),
    ('engines = "not public"', "engines: takes back what was not inherited"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "words"), SAID)
def test_who_says_so(line: str, words: str) -> None:
    assert faults(profile(fact("host_link", '"USB"') + line)) == [words]


LIMITS = [
    ('ops = ["Conv"]\nmeasure = "kernel"',
     "limit 1, kernel of Conv: bounds nothing: give one of least, most, multiple, among"),
    ('ops = ["Conv"]\nmeasure = "kernl"\nmost = 3',
     "limit 1, kernl of Conv: no such measure: 'kernl'; did you mean 'kernel'?"),
    ('ops = ["Conv"]\nmeasure = ["kernel"]\nmost = 3',
     "limit 1, ['kernel'] of Conv: no such measure: ['kernel']; did you mean 'kernel'?"),
    ('ops = ["Conv2d"]\nmeasure = "kernel"\nmost = 3',
     "limit 1, kernel of Conv2d: 'Conv2d' is no ONNX operator; did you mean 'Conv'?"),
    ('ops = []\nmeasure = "kernel"\nmost = 3',
     "limit 1, kernel of : ops is [], not a list of ONNX operators"),
    ('ops = ["Conv"]\nmost = 3', "limit 1, ? of Conv: needs measure"),
    ('ops = ["Conv"]\nmeasure = "kernel"\nmax = 3', "limit 1, kernel of Conv: unknown 'max'"),
    ('ops = ["Conv"]\nmeasure = "stride"\nleast = 8\nmost = 2',
     "limit 1, stride of Conv: least 8 is above most 2"),
    ('ops = ["Conv"]\nmeasure = "depthwise"\nmost = 1',
     "limit 1, depthwise of Conv: most bounds numbers, and depthwise is none: use among"),
    ('ops = ["Conv"]\nmeasure = "kernel"\nmost = "3"',
     "limit 1, kernel of Conv: most is '3', not a number"),
    ('ops = ["Conv"]\nmeasure = "kernel"\nmultiple = 0',
     "limit 1, kernel of Conv: multiple is 0, not a whole number above 0"),
    ('ops = ["Resize"]\nmeasure = "mode"\namong = [1]',
     "limit 1, mode of Resize: mode is never 1"),
    ('ops = ["Conv"]\nmeasure = "kernel"\namong = []',
     "limit 1, kernel of Conv: among is [], not a list of values"),
    ('ops = ["Conv"]\nmeasure = "kernel"\nmost = 3\nwhen = { depthwis = true }',
     "limit 1, kernel of Conv: no such measure: 'depthwis'; did you mean 'depthwise'?"),
    # A text would never equal the measure: the limit would hold nowhere, silently.
    ('ops = ["Conv"]\nmeasure = "kernel"\nmost = 3\nwhen = { depthwise = "true" }',
     "limit 1, kernel of Conv: depthwise is never 'true'"),
    ('ops = ["Conv"]\nmeasure = "kernel"\nmost = 3\nwhen = "depthwise"',
     "limit 1, kernel of Conv: when is 'depthwise', not a table of measures"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), LIMITS)
def test_limits(text: str, words: str) -> None:
    assert faults(profile(rest=limit(text))) == [words]


CONFLICTS = [
    (fact("onnx.opset_min", "15") + fact("onnx.opset_max", "13"),
     "onnx.opset_min 15 is above onnx.opset_max 13"),
    (INT8 + fact("int8.activation_dtype", '"uint8"'),
     "int8.activation_range [-128, 127] is outside uint8, [0, 255]"),
    (INT8.replace("[-127, 127]", "[-129, 127]"),
     "int8.weight_range [-129, 127] is outside int8, [-128, 127]"),
    (INT8.replace("[-128, 127]", "[0, 1]").replace("false", "true"),
     "int8.activation_range [0, 1] has no middle code, which a symmetric scheme needs"),
    (fact("int8.fixed_scales", "{ Softmax = 0.1 }") + fact("precisions", '["float"]'), ""),
    (INT8.replace('"int8.ops"', '"ops.on_host"'), "precisions has int8, but int8.ops is missing"),
    (INT8.replace('["int8"]', '["float"]').replace('"int8.ops"', '"ops.on_host"'),
     "int8 is described, but int8.ops is missing"),
    (INT8 + fact("int8.whole", "true") + fact("float.formats", "[[8, 7]]"),
     "int8.whole says that int8 needs no floats, but float.formats lists some for nothing"),
    (INT8 + fact("int8.per_channel_ops", '["Gemm"]'),
     "int8.per_channel_ops has Gemm, which int8.ops has not"),
    (INT8.replace("= true", "= false") + fact("int8.per_channel_ops", '["Conv"]'),
     "int8.per_channel_ops is given, but int8.weight_per_channel is false"),
    (INT8 + fact("int8.percentile", "99.9"),
     "int8.percentile is given, but int8.observer is min-max"),
    (fact("float.formats", "[[8, 10]]") + fact("float.bits", "16"),
     "float.formats [8, 10] takes 19 bits, but float.bits is 16"),
    (fact("float.formats", "[[5, 10]]") + fact("float.mantissa_max", "9"),
     "float.formats [5, 10] is above float.mantissa_max 9"),
    (fact("float.rounds", '"operands"'),
     "float.rounds is given, but there are no float.formats to round to"),
    (fact("ops.supported", '["Relu", "Erf"]') + fact("ops.on_host", '["Erf"]'),
     "Erf: both in ops.supported and in ops.on_host"),
    (INT8 + fact("ops.supported", '["Conv", "Relu"]'),
     "int8.ops has MatMul, which ops.supported has not"),
    (fact("memory.gib", "4") + fact("memory.usable_mib", "4097"),
     "memory.usable_mib 4097 is more than memory.gib 4"),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "words"), CONFLICTS)
def test_facts_that_contradict_each_other(facts: str, words: str) -> None:
    if words:
        assert faults(profile(facts)) == [words]
    else:
        Profile.parse(profile(facts))


TOP = [
    ('title = "X"', ["name is missing"]),
    ('name = "x"', ["title is missing"]),
    ('name = "x"\ntitle = 3', ["title is 3, not a str"]),
    ('name = "x"\ntitle = "X"\nfacts = 3', ["facts is 3, not a dict"]),
    ('name = "x"\ntitle = "X"\nfact = {}', ["unknown key 'fact'; did you mean 'facts'?"]),
    ('name = "x"\ntitle = "X"\n[sources]\ns = "somewhere"', ["source 's' is cited by no fact"]),
    ('name = "x"\ntitle = "X"\n[sources]\ns = 1\n[facts]\n' + fact("engines", "1"),
     ["source 's' is 1, not a text"]),
    ('name = "x"\ntitle = "X"\nlimits = [3]',
     ["limit 1: needs grade, measure, ops, source; is 3"]),
    ('name = "x"\ntitle = "X"\ninherits = "y"',
     ["inherits 'y': there is nothing here to load it from"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), TOP)
def test_the_file_as_a_whole(text: str, words: list[str]) -> None:
    with pytest.raises(NpucError) as caught:
        Profile.parse(text)
    assert caught.value.message.split("\n  ")[1:] == words


def test_bad_toml_is_its_own_error_and_names_the_line() -> None:
    with pytest.raises(NpucError, match=r"the profile is not valid TOML: .*line 2"):
        Profile.parse('name = "x"\ntitle = \n')
    with pytest.raises(NpucError, match=r"profile 'x' is not valid TOML"):
        Profile.parse("[", name="x")


def test_all_faults_are_shown_at_once() -> None:
    """Each part of a profile is read to its end, however many faults came before."""
    text = """
name = "x"
title = "X"
extra = 1
[sources]
s = "somewhere"
idle = "nobody cites this"
[facts]
colour = { value = 1, grade = "P", source = "s" }
engines = { value = 0, grade = "P", source = "s" }
"memory.gib" = { value = 4, grade = "Q", source = "s" }
"peak.int8_tops" = { value = 4, grade = "P", source = "t" }
"onnx.opset_min" = { value = 9, grade = "P", source = "s" }
"onnx.opset_max" = { value = 8, grade = "P", source = "s" }
[[limits]]
ops = ["Conv"]
measure = "kernl"
grade = "P"
source = "s"
"""
    assert faults(text) == [
        "unknown key 'extra'",
        "colour: no such fact",
        "engines: 0 is not a whole number above 0",
        "memory.gib: grade 'Q' is none of P, S, I, A",
        "peak.int8_tops: source 't' is not listed under [sources]",
        "onnx.opset_min 9 is above onnx.opset_max 8",
        "limit 1, kernl of Conv: no such measure: 'kernl'; did you mean 'kernel'?",
        "limit 1, kernl of Conv: bounds nothing: give one of least, most, multiple, among",
        "source 'idle' is cited by no fact",
    ]


def test_a_malformed_fact_is_not_reported_as_missing_too() -> None:
    bad = INT8.replace('["Conv", "MatMul"]', '["Cnov"]')
    assert faults(profile(bad)) == ["int8.ops: 'Cnov' is no ONNX operator; did you mean 'Conv'?"]


# TOML values of every type, small enough to be wrong in many ways.
ATOMS = (
    st.booleans()
    | st.integers(-3, 300)
    | st.floats(allow_nan=False, width=32)
    | st.text(string.ascii_letters, max_size=6)
)
TREES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(string.ascii_letters, min_size=1, max_size=6), inner, max_size=2)
    ),
    max_leaves=5,
)


@given(st.sampled_from(sorted(fact_schema.SCHEMA)), TREES)
def test_any_value_is_right_or_a_fault(key: str, value: object) -> None:
    """Checks never fail with an error of their own, and a fault always has words."""
    said = fact_schema.fault(key, value)
    assert isinstance(said, str)
    assert (said == "") == fact_schema.SCHEMA[key].holds(value)


@given(st.sampled_from(["ops", "measure", "least", "most", "multiple", "among", "when"]), TREES)
def test_any_limit_is_right_or_a_fault(key: str, value: object) -> None:
    table = {"ops": ["Conv"], "measure": "kernel", "most": 3, key: value}
    if not list(fact_limits.faults(table)):
        assert fact_limits.limit({**table, "grade": "P", "source": "s"}).measure == "kernel"


def test_names_kept_apart_from_heavy_modules_agree_with_them() -> None:
    """`npuc.facts` loads neither onnx nor numpy; what it knows of them is checked here."""
    import onnx.defs

    from npuc.passes.arithmetic.requantize import RULES

    assert set(features.MEASURES) == fact_schema.MEASURES
    assert set(fact_schema.RULES) == set(RULES)
    named = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert named - onnx_kinds.KINDS == set()
    if onnx.__version__.startswith("1.23."):
        assert onnx_kinds.KINDS - named == set()
