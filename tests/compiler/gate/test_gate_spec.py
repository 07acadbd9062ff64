"""parity.toml: what it means, and every fault in it at once, with its line."""

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from npuc import plugins
from npuc.errors import UsageError
from npuc.gate import spec
from npuc.gate.pairs import Hold, Metric, Waiver
from npuc.gate.places import lines

Write = Callable[[str], Path]

LEAST = '[models.net]\nfile = "model.pt"\ntargets = ["cpu"]\n'
WAIVER = (
    '[[waivers]]\nmodel = "net"\ntarget = "cpu"\ncheck = "artifact"\nreason = "known"\n'
    "expires = 2027-01-31\n"
)


def test_the_least_file_that_there_can_be(parity: Write) -> None:
    path = parity(f"version = 1\n{LEAST}")
    found = spec.read(path)
    (pair,) = found.pairs()
    assert (pair.name, pair.model, pair.target) == ("net::cpu", "net", "cpu")
    assert pair.of.path == path.parent / "model.pt"
    assert pair.of.options == {} and pair.of.hold == Hold() and not pair.strict


def test_everything_that_can_be_stated(parity: Write) -> None:
    path = parity(
        """\
version = 1
strict = true
[hold]
sqnr-db = 25
agreement = 0.9
[models.net]
file = "model.pt"
targets = "all"
samples = "samples.npz"
skip = ["conv", "fc"]
dims = { batch = 2, "seq len" = 8 }
host = false
factory = "evaluate:accuracy"
depends = ["evaluate.py"]
[models.net.hold]
agreement = 0.95
confidence = 0.99
[models.net.outputs."my out"]
cosine = 0.9
[models.net.metrics.accuracy]
function = "evaluate:accuracy"
labels = "labels.npz"
max-drop = 0.01
span = [0, 100]
[models.net.metrics.found]
task = "detection"
max-drop = 0.02
boxes = "dets"
overlaps = [0.5, 0.75]
nms = 0.5
[models.zoo]
file = "zoo:digits-vit"
targets = ["atom", "cpu"]
[[waivers]]
model = "net"
target = "warboy"
check = "metric.accuracy"
reason = "a ticket"
expires = 2027-01-31
"""
    )
    found = spec.read(path)
    net, zoo = found.models
    assert net.targets == plugins.names() and found.strict
    assert net.hold == Hold(25.0, agreement=0.95, confidence=0.99)
    assert net.outputs == {"my out": Hold(cosine=0.9)}
    assert net.options == {
        "dims": {"batch": 2, "seq len": 8}, "skip": ("conv", "fc"), "host": False,
        "samples": path.parent / "samples.npz",
        "model": "evaluate:accuracy", "model_path": path.parent,
    }  # fmt: skip
    labels = path.parent / "labels.npz"
    assert net.metrics == (
        Metric("accuracy", 0.01, "evaluate:accuracy", "", labels, False, (0.0, 100.0), 0.99),
        Metric(
            "found", 0.02, task="detection", confidence=0.99,
            settings=(("boxes", "dets"), ("overlaps", (0.5, 0.75)), ("nms", 0.5)),
        ),
    )  # fmt: skip
    assert net.depends == (path.parent / "evaluate.py",)
    assert (zoo.source, zoo.path, zoo.hold.sqnr_db) == ("zoo:digits-vit", None, 25.0)
    waived = {pair.name: pair.waivers for pair in found.pairs() if pair.waivers}
    (waiver,) = waived.pop("net::warboy")
    assert waiver == Waiver(
        "net", "warboy", "metric.accuracy", "a ticket", date(2027, 1, 31)
    )  # fmt: skip
    assert not waived
    assert [pair.name for pair in found.pairs()][-2:] == ["zoo::atom", "zoo::cpu"]


FAULTS = {
    "nothing at all": ("", ["needs version: version = 1", "needs a model: [models.NAME]"]),
    "another version": (f"version = 2\n{LEAST}", ["line 1: version: is 2; this npuc reads 1"]),
    "no target": (
        'version = 1\n[models.net]\nfile = "model.pt"\ntargets = []\n',
        ["line 4: models.net.targets: is empty"],
    ),
    "misspelled": (
        f"version = 1\nstrct = true\n{LEAST}presicion = 'int8'\n[models.net.hold]\nsqnrdb = 3\n",
        ["line 2: strct: unknown key; did you mean 'strict'?",
         "line 6: models.net.presicion: unknown key; did you mean 'precision'?",
         "line 8: models.net.hold.sqnrdb: unknown key; did you mean 'sqnr-db'?"],
    ),
    "files": (
        'version = 1\n[models.a]\nfile = "modle.pt"\ntargets = ["cpu"]\nsamples = "nowhere/x"\n'
        'calibration-table = "."\n',
        ["line 3: models.a.file: there is no FOLDER/modle.pt; did you mean 'model.pt'?",
         "line 5: models.a.samples: there is no FOLDER/nowhere/x",
         "line 6: models.a.calibration-table: FOLDER is a folder, not a file"],
    ),
    "targets and precisions": (
        'version = 1\n[models.a]\nfile = "model.pt"\ntargets = ["cpu", "atmo", "rngd"]\n'
        'precision = "w4a8"\n',
        ["line 4: models.a.targets: unknown target 'atmo'; did you mean 'atom'?",
         "line 5: models.a.precision: 'w4a8' is not available: rngd has float, int8, w8a16, fp8, "
         "fp8-e5m2, auto"],
    ),
    "numbers": (
        f"version = 1\n[hold]\nsqnr-db = nan\nagreement = 97\nmax-noise = 0\ncosine = true\n"
        f"confidence = 1.0\n{LEAST}dims = {{ batch = 0 }}\nopset = 20.5\n",
        ["line 3: hold.sqnr-db: is nan, not from -inf",
         "line 4: hold.agreement: is 97, not above 0 to 1: a share of samples, such as 0.99",
         "line 5: hold.max-noise: is 0, not above 0: so many noise floors",
         "line 6: hold.cosine: is true, not a number",
         "line 7: hold.confidence: is 1, not above 0.5 to 0.999999: such as 0.95",
         "line 11: models.net.dims: batch is 0, not a whole number from 1",
         "line 12: models.net.opset: is 20.5, not a whole number from 1"],
    ),
    "metrics": (
        f"version = 1\n{LEAST}[models.net.metrics.a]\nfunction = 'evaluate:acuracy'\n"
        "max-drop = 0.1\n[models.net.metrics.b]\nfunction = 'nothing:f'\ntask = 'detection'\n"
        "max-drop = -1\n[models.net.metrics.c]\nspan = [1, 0]\n",
        ["line 6: models.net.metrics.a.function: FOLDER/evaluate.py defines no acuracy; did you "
         "mean 'accuracy'?",
         "line 8: models.net.metrics.b: has both function and task: it needs one of them",
         "line 9: models.net.metrics.b.function: there is no FOLDER/nothing.py",
         "line 11: models.net.metrics.b.max-drop: is -1, not from 0",
         "line 12: models.net.metrics.c: needs max-drop: how much the score may fall",
         "line 12: models.net.metrics.c: has neither function nor task: it needs one of them",
         "line 13: models.net.metrics.c.span: is an array, not the least and the largest score, "
         "as [0, 1]"],
    ),
    "tasks": (
        f"version = 1\n{LEAST}[models.net.metrics.a]\ntask = 'classification'\nmax-drop = 0.1\n"
        "k = 1.5\nscore = 'x'\ncorpus = true\nties = 1\n"
        "[models.net.metrics.b]\ntask = 'detections'\nmax-drop = 0.1\n",
        ["line 8: models.net.metrics.a.k: is 1.5, not a whole number",
         "line 9: models.net.metrics.a.score: unknown key; did you mean 'scores'?",
         "line 10: models.net.metrics.a.corpus: unknown key",
         "line 11: models.net.metrics.a.ties: unknown key",
         "line 13: models.net.metrics.b.task: 'detections' is none of classification, detection, "
         "segmentation, next-token; did you mean 'detection'?"],
    ),
    "waivers": (
        f"version = 1\n{LEAST}[[waivers]]\nmodel = 'net'\ntarget = 'cpu'\ncheck = 'artifact'\n"
        "[[waivers]]\nmodel = 'nat'\ntarget = 'atom'\ncheck = 'x'\nreason = ''\n"
        "expires = '2027-01-31'\n[[waivers]]\nmodel = 'net'\ntarget = 'atom'\ncheck = 'agreement'\n"
        "reason = 'r'\nexpires = 2027-01-31T00:00:00\n[[waivers]]\nmodel = 'net'\ntarget = 'cpu'\n"
        "check = 'agreement'\nreason = 'r'\nexpires = 2027-01-31\n",
        ["line 5: waivers.1: needs reason: why this failure is to be borne",
         "line 5: waivers.1: needs expires: the last day that it holds, such as 2027-01-31",
         "line 10: waivers.2.model: stale waiver: there is no model 'nat'",
         "line 13: waivers.2.reason: is '', not a text",
         "line 14: waivers.2.expires: is 2027-01-31, not a date: write 2027-01-31, without quotes",
         "line 17: waivers.3.target: stale waiver: net is not held on 'atom', but on cpu",
         "line 20: waivers.3.expires: is 2027-01-31 00:00:00, not a date: write 2027-01-31, "
         "without a time",
         "line 24: waivers.4.check: stale waiver: net is not held to agreement; it is held to "
         "defaults"],
    ),
    "waived twice": (
        f"version = 1\n{LEAST}{WAIVER}{WAIVER}",
        ["line 11: waivers.2: waives net, cpu, artifact again"],
    ),
    "no tables": (
        "version = 1\nhold = 3\nwaivers = 3\nmodels = { net = 'model.pt' }\n",
        ["line 2: hold: is 3, not a table",
         "line 3: waivers: is no array of tables: write [[waivers]]",
         "line 4: models.net: is 'model.pt', not a table",
         "line 4: models.net: needs file",
         "line 4: models.net: needs targets: such as [\"cpu\"]; there are TARGETS"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_said_at_once(parity: Write, name: str) -> None:
    text, wanted = FAULTS[name]
    path = parity(text)
    with pytest.raises(UsageError) as caught:
        spec.read(path)
    said = caught.value.message.replace(str(path.parent), "FOLDER")
    said = said.replace(", ".join(plugins.names()), "TARGETS")
    assert said.splitlines()[0] == "FOLDER/parity.toml cannot be used:"
    assert said.splitlines()[1:] == [f"  {fault}" for fault in wanted]


def test_what_is_no_toml_names_the_line(parity: Write) -> None:
    with pytest.raises(UsageError, match=r"parity.toml is not valid TOML: .*line 2"):
        spec.read(parity("version = 1\n[models\n"))


def test_without_a_file_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*No such file") as caught:
        spec.read(tmp_path / "parity.toml")
    assert "npuc gate model.pt --target cpu" in caught.value.hint


def test_paths_are_relative_to_the_file_not_to_where_one_stands(
    parity: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parity(f"version = 1\n{LEAST}")
    monkeypatch.chdir("/")
    assert spec.read(path).models[0].path == path.parent / "model.pt"
    monkeypatch.chdir(path.parent)
    assert spec.read(Path("parity.toml")).models[0].source == "model.pt"


def test_a_gate_of_models_alone_needs_no_file(parity: Write) -> None:
    folder = parity("").parent
    found = spec.single([str(folder / "model.pt"), "zoo:digits-vit"], ["cpu", "atom"])
    assert [p.name for p in found.pairs()] == [
        "model::cpu", "model::atom", "digits-vit::cpu", "digits-vit::atom",
    ]  # fmt: skip
    with pytest.raises(UsageError) as caught:
        spec.single([str(folder / "gone.pt"), "a/x.onnx", "b/x.onnx"], ["atmo"])
    assert caught.value.message.splitlines()[-2:] == [
        "x names two models", "unknown target 'atmo'; did you mean 'atom'?",
    ]  # fmt: skip


def test_a_part_of_a_gate(parity: Write) -> None:
    text = f"version = 1\n{LEAST}[models.b]\nfile = 'other.onnx'\ntargets = ['atom', 'cpu']\n"
    found = spec.read(parity(text))
    assert [p.name for p in found.only(targets=["cpu"]).pairs()] == ["net::cpu", "b::cpu"]
    assert [p.name for p in found.only(["b"]).pairs()] == ["b::atom", "b::cpu"]
    assert found.only() == found
    with pytest.raises(UsageError) as caught:
        found.only(["nett"], ["warboy"])
    assert caught.value.message.splitlines() == [
        "this gate has no model 'nett'; did you mean 'net'?: it has net, b",
        "this gate has no target 'warboy': it has cpu, atom",
    ]
    with pytest.raises(UsageError, match="these models are on none of these targets"):
        found.only(["net"], ["atom"])


def test_a_waiver_holds_through_its_last_day() -> None:
    waiver = Waiver("net", "cpu", "artifact", "known", date(2027, 1, 31))
    assert not waiver.expired(date(2027, 1, 31))
    assert waiver.expired(date(2027, 2, 1))
    assert not replace(waiver, expires=date(2028, 1, 1)).expired(date(2027, 2, 1))


def test_lines_of_keys_in_every_spelling() -> None:
    text = '# c\n[a . "b.c"]\nx.y = 1\n"z w" = 2 # [n]\n[[w]]\nk = 1\n[[w]]\nk = 2\n[w.in]\nq = 1\n'
    found = lines(text)
    wanted = {"a.b.c": 2, "a.b.c.x.y": 3, "a.b.c.z w": 4, "w.1": 5, "w.1.k": 6, "w.2.k": 8}
    assert wanted.items() <= found.items()
