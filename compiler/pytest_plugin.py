"""Turn each model on each target of parity.toml into a test of the repository that uses npuc.

A test with the marker ``@pytest.mark.parity`` that takes the fixture `parity` runs once for each
pair of the file, named ``digits-atom``. ``pytest --parity`` collects the file itself, so that no
test needs to be written; ``pytest parity.toml`` runs nothing else. What was compiled is kept in
npuc's cache, which workers of pytest-xdist share.

Every test run of an environment with npuc in it imports this module: what is heavy is imported
where a pair is checked.
"""

import warnings
from collections.abc import Collection, Generator, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from npuc.errors import NpucError

if TYPE_CHECKING:
    from npuc.gate.run import Outcome
    from npuc.gate.spec import Pair
    from npuc.report import Report

MARKER = "parity"
WAIVED = "npuc.waived"
"""The property of a test that passed because of a waiver: its text."""

_PAIRS = pytest.StashKey[dict[Path, "tuple[Pair, ...]"]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--parity`` and the setting ``npuc_parity_file``."""
    group = parser.getgroup("npuc", "parity of compiled models (npuc)")
    group.addoption(
        "--parity", action="store_true", dest="npuc_parity",
        help="Compile each model for each target of parity.toml, and hold it to what the file "
        "asks, as tests of their own.",
    )  # fmt: skip
    parser.addini(
        "npuc_parity_file", "Where parity.toml is, from the root folder.", default="parity.toml"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker; with ``--parity`` add the file to what is collected."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(model=None, target=None, file=None): run this test, which takes the fixture "
        "`parity`, for each model on each target of parity.toml (those named: one, or a list).",
    )
    config.stash[_PAIRS] = {}
    path = _file(config)
    if config.option.npuc_parity and not any(_names(path, arg, config) for arg in config.args):
        if not path.is_file():
            raise pytest.UsageError(f"--parity: there is no {path}")
        config.args.append(str(path))


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> "ParityFile | None":
    """Collect parity.toml where ``--parity`` or an argument names it."""
    asked = parent.config.option.npuc_parity or parent.session.isinitpath(file_path)
    if not asked or file_path != _file(parent.config):
        return None
    found: ParityFile = ParityFile.from_parent(parent, path=file_path)
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a marked test once for each pair that its marker names."""
    marker = metafunc.definition.get_closest_marker(MARKER)
    if marker is None:
        return
    if MARKER not in metafunc.fixturenames:
        pytest.fail(
            f"{metafunc.definition.nodeid} is marked {MARKER} and does not take the fixture "
            f"`{MARKER}`: it would check nothing\n"
            f"→ def {metafunc.function.__name__}(parity): parity.check()",
            pytrace=False,
        )
    try:
        pairs = _chosen(metafunc.config, marker)
    except NpucError as error:
        pytest.fail(str(error), pytrace=False)
    metafunc.parametrize(MARKER, pairs, indirect=True, ids=[_id(pair) for pair in pairs])


@pytest.fixture
def parity(request: pytest.FixtureRequest) -> "Parity":
    """One model on one target of parity.toml; it is checked when the test has run, or before."""
    if not hasattr(request, "param"):
        pytest.fail(
            f"{request.node.nodeid} takes the fixture `parity` without its marker, which says for "
            "which models and targets\n→ @pytest.mark.parity",
            pytrace=False,
        )
    return Parity(request.param, request.node)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """After a test's own assertions hold it to parity.toml, so that no test forgets to."""
    result = yield
    found = pyfuncitem.funcargs.get(MARKER)
    if isinstance(found, Parity):
        found.check()
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what passed because of a waiver: a passed test shows no text of its own."""
    lines = [
        f"{report.nodeid}: {value}"
        for report in terminalreporter.stats.get("passed", [])
        if getattr(report, "when", "") == "call"
        for name, value in report.user_properties
        if name == WAIVED
    ]
    if lines:
        terminalreporter.section("parity: waived", yellow=True)
        for line in lines:
            terminalreporter.line(line)


class Parity:
    """One model on one target. It is compiled, or taken from the cache, when first looked at."""

    def __init__(self, pair: "Pair", node: pytest.Item) -> None:
        self.pair = pair
        self._node = node

    @cached_property
    def outcome(self) -> "Outcome":
        """What came of it, failed or not; raises nothing that parity.toml could cause."""
        from npuc.gate import run

        with warnings.catch_warnings():
            # Libraries' warnings are shown at the end of the run. They say nothing about the
            # tests, whose own filter may make errors of them.
            warnings.simplefilter("default")
            outcome = run.check(self.pair)
        self._node.user_properties += list(_properties(outcome))
        for text in outcome.waivers:
            self._node.add_report_section("call", "parity", text)
        return outcome

    @property
    def report(self) -> "Report":
        """The parity report, for assertions of the test's own; fails where nothing compiled."""
        if self.outcome.report is None:
            self._fail()
        return self.outcome.report

    @property
    def artifact(self) -> Path:
        """The compiled file, in npuc's cache: to be read, not to be changed."""
        if self.outcome.artifact is None:
            self._fail()
        return self.outcome.artifact

    def check(self) -> None:
        """Fail the test, with the report and what to do, unless all of parity.toml holds."""
        if not self.outcome.passed:
            self._fail()

    def _fail(self) -> NoReturn:
        pytest.fail(self.outcome.text(), pytrace=False)


class ParityFile(pytest.File):
    """parity.toml as a file of tests."""

    def collect(self) -> Iterator["ParityItem"]:
        """Yield one test for each model on each target."""
        try:
            pairs = _pairs(self.config, self.path)
        except NpucError as error:
            raise self.CollectError(str(error)) from error
        for pair in pairs:
            yield ParityItem.from_parent(self, name=_id(pair), pair=pair)


class ParityItem(pytest.Item):
    """One model on one target."""

    def __init__(self, *, pair: "Pair", **others: Any) -> None:
        super().__init__(**others)
        self.pair = pair
        self.add_marker(MARKER)

    def runtest(self) -> None:
        """Compile it, or take it from the cache, and hold it to the file."""
        Parity(self.pair, self).check()

    def reportinfo(self) -> tuple[Path, None, str]:
        """Say where the test comes from."""
        return self.path, None, f"{self.pair.model} on {self.pair.target}"


def _file(config: pytest.Config) -> Path:
    return config.rootpath / str(config.getini("npuc_parity_file"))


def _names(path: Path, argument: str, config: pytest.Config) -> bool:
    """Whether an argument of the command line is this file, or pairs of it."""
    return (config.invocation_params.dir / argument.split("::")[0]).resolve() == path.resolve()


def _id(pair: "Pair") -> str:
    return f"{pair.model}-{pair.target}"


def _pairs(config: pytest.Config, path: Path) -> "tuple[Pair, ...]":
    """Read a file once a run; raises `NpucError`."""
    from npuc.gate import spec

    known = config.stash[_PAIRS]
    if path not in known:
        known[path] = spec.read(path).pairs()
    return known[path]


def _chosen(config: pytest.Config, marker: pytest.Mark) -> "list[Pair]":
    """Return the pairs that a marker names; none, or a name that is in none, is a fault."""
    wrong = [*map(repr, marker.args), *(marker.kwargs.keys() - {"model", "target", "file"})]
    if wrong:
        pytest.fail(
            f"@pytest.mark.{MARKER} takes model=, target= and file=, not {', '.join(wrong)}",
            pytrace=False,
        )
    named = marker.kwargs.get("file")
    path = _file(config) if named is None else config.rootpath / named
    pairs = _pairs(config, path)
    models = _wanted(marker, "model", {pair.model for pair in pairs}, path)
    targets = _wanted(marker, "target", {pair.target for pair in pairs}, path)
    chosen = [p for p in pairs if p.model in models and p.target in targets]
    if not chosen:
        pytest.fail(f"{path} asks for no {sorted(models)} on {sorted(targets)}", pytrace=False)
    return chosen


def _wanted(marker: pytest.Mark, what: str, known: set[str], path: Path) -> Collection[str]:
    value: str | Sequence[str] | None = marker.kwargs.get(what)
    names = known if value is None else [value] if isinstance(value, str) else value
    if strange := sorted(set(names) - known):
        pytest.fail(
            f"{path} has no {what} {', '.join(strange)}: it has {', '.join(sorted(known))}",
            pytrace=False,
        )
    return names


def _properties(outcome: "Outcome") -> Iterator[tuple[str, object]]:
    """What a test's JUnit element says of it."""
    yield "npuc.model", outcome.pair.model
    yield "npuc.target", outcome.pair.target
    yield "npuc.state", outcome.state
    yield "npuc.exit_code", outcome.exit_code
    yield "npuc.cached", outcome.cached
    if outcome.report is not None:
        yield "npuc.precision", outcome.report.precision
        yield "npuc.evidence", outcome.report.evidence
        yield "npuc.reference", outcome.report.reference
    yield from ((WAIVED, text) for text in outcome.waivers)
