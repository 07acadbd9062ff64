"""The device profiles that ship with npuc, and the reader's own checks."""

from dataclasses import replace

import pytest

from npuc.errors import NpucError
from npuc.profile import Fact, FloatFormat, Profile


def test_atom_int_scheme() -> None:
    """The scheme the quantizer reads is the published one."""
    scheme = Profile.load("atom").int_scheme
    assert scheme is not None
    assert scheme.weight_range == scheme.activation_range == (-128, 127)
    assert (scheme.weight_per_channel, scheme.activation_symmetric) == (True, True)
    assert (scheme.observer, scheme.percentile) == ("percentile", 99.999)
    assert scheme.fixed_scales == {"Softmax": 1 / 127}
    assert {"Conv", "MatMul", "Gemm"} <= scheme.ops


def test_atom_floats_are_a_pessimistic_and_an_optimistic_format() -> None:
    """The first format is the worse one, and none contradicts what is known of the device."""
    profile = Profile.load("atom")
    first, second = profile.float_formats
    assert (first, second) == (FloatFormat(8, 7), FloatFormat(6, 9))
    assert first.mantissa < second.mantissa <= profile.get("float.mantissa_max")
    for fmt in profile.float_formats:
        assert 1 + fmt.exponent + fmt.mantissa == profile.get("float.bits")


def test_atom_says_what_it_assumes_and_keeps_conflicts_out() -> None:
    """A report can list every assumption; facts with conflicting sources have no value."""
    profile = Profile.load("atom")
    assert {"float.formats", "int8.ops", "int8.accumulator"} <= set(profile.assumed)
    assert "power" not in profile.facts
    assert profile.opset_max is None
    assert profile.static_shapes
    assert profile.precisions[0] == "int8"


def test_malformed_facts_are_reported_together() -> None:
    """One reading shows every fault: unknown key, missing field, bad grade, unknown source."""
    text = """
name = "x"
title = "X"
extra = 1
[sources]
s = "somewhere"
[facts]
a = { value = 1, grade = "P" }
b = { value = 1, grade = "Q", source = "s" }
c = { value = 1, grade = "P", source = "t" }
"""
    with pytest.raises(NpucError) as caught:
        Profile.parse(text)
    for part in ("'extra'", "a: needs", "b: grade 'Q'", "c: source 't'"):
        assert part in caught.value.message


def test_a_device_without_integers_has_no_scheme() -> None:
    """Absent facts mean absent features, not defaults."""
    profile = Profile.parse('name = "x"\ntitle = "X"\n')
    assert profile.int_scheme is None
    assert profile.float_formats == ()
    assert profile.precisions == ("float",)


def test_at_a_precision_only_what_differs_is_replaced() -> None:
    """W4A8 is the int8 scheme with four-bit weights, which the report then calls assumed."""
    profile = Profile.load("atom")
    assert profile.at("int8") is profile and profile.at("float") is profile
    four, eight = profile.at("w4a8").int_scheme, profile.int_scheme
    assert four is not None and eight is not None
    assert (four.weight_range, four.weight_dtype, four.weight_bits) == ((-7, 7), "int8", 4)
    assert replace(four, weight_range=eight.weight_range, constant_range=None) == eight
    assert eight.weight_bits == 8
    assert profile.at("w4a8").facts["int8.weight_range"].grade == "A"
    assert profile.at("w4a8").at("w4a8") == profile.at("w4a8")
    assert profile.scheme("w4a8") == four and profile.scheme("float") is None


def test_at_a_precision_what_the_profile_states_comes_first() -> None:
    stated = Profile.load("aries")
    fact = Fact([-8, 7], "P", "sdk")
    profile = replace(stated, facts={**stated.facts, "w4a8.weight_range": fact})
    assert profile.at("w4a8").facts["int8.weight_range"] is fact
    scheme = profile.at("w4a8").int_scheme
    assert scheme is not None and scheme.weight_range == (-8, 7)


def test_at_an_unknown_precision() -> None:
    with pytest.raises(NpucError, match="no precision 'int7'; npuc has int8, float, "):
        Profile.load("atom").at("int7")


def test_a_device_without_integers_has_none_at_any_precision() -> None:
    assert Profile.load("tpu").at("w4a8").int_scheme is None


def test_four_bits_are_for_weights_alone() -> None:
    """Other constants, such as a summand on a device without floats, keep their eight."""
    scheme = Profile.load("aries").at("w4a8").int_scheme
    assert scheme is not None
    assert (scheme.weight_range, scheme.constant_range) == ((-7, 7), (-127, 127))
