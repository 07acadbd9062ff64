"""Models, and files a stranger could send, for the tests of loading."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn


class Net(nn.Module):
    """Two branches, a normalisation, dropout that is off in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.drop(self.norm(self.conv(x)).relu()).mean((2, 3)))
        return out


class Payload:
    """Unpickling an instance creates the file `sentinel`."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.sentinel), "w"))


def make_net(seed: int = 0) -> Net:
    """Build a `Net` in eval mode with non-trivial statistics."""
    torch.manual_seed(seed)
    net = Net()
    for _ in range(3):
        net(torch.randn(8, 1, 6, 6))
    return net.eval()


@pytest.fixture
def net() -> Net:
    return make_net()


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    """A file that exists only if a payload ran."""
    return tmp_path / "payload-ran"


@pytest.fixture
def pt2(tmp_path: Path) -> Path:
    """A plain torch.export archive of a net with a dynamic batch."""
    path = tmp_path / "plain.pt2"
    shapes = {"x": {0: torch.export.Dim("batch")}}
    program = torch.export.export(make_net(), (torch.randn(2, 1, 6, 6),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


Edit = Callable[[dict[str, bytes]], None]


@pytest.fixture
def rewrite(tmp_path: Path) -> Callable[[Path, Edit], Path]:
    """Copy a zip archive with its members edited (by name below the root)."""

    def edit(source: Path, change: Edit) -> Path:
        with zipfile.ZipFile(source) as archive:
            root = archive.namelist()[0].split("/")[0]
            members = {n[len(root) + 1 :]: archive.read(n) for n in archive.namelist()}
        change(members)
        target = tmp_path / "edited.pt"
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for name, data in members.items():
                archive.writestr(f"{root}/{name}", data)
        return target

    return edit


def edit_json(name: str, change: Callable[[Any], None]) -> Edit:
    """Edit one JSON member in place."""

    def apply(members: dict[str, bytes]) -> None:
        data = json.loads(members[name])
        change(data)
        members[name] = json.dumps(data).encode()

    return apply


@pytest.fixture
def json_edit() -> Callable[[str, Callable[[Any], None]], Edit]:
    return edit_json


@pytest.fixture
def evil_pickle(sentinel: Path) -> bytes:
    """A pickle that creates the sentinel when it is loaded."""
    return pickle.dumps(Payload(sentinel), protocol=2)


@pytest.fixture
def evil_torch(sentinel: Path) -> bytes:
    """A torch.save archive that creates the sentinel when it is loaded."""
    buffer = io.BytesIO()
    torch.save({"weight": Payload(sentinel)}, buffer)
    return buffer.getvalue()


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., Path]:
    """Write arrays to an .npz file."""

    def write(arrays: Mapping[str, np.ndarray[Any, Any]], name: str = "inputs.npz") -> Path:
        path = tmp_path / name
        with path.open("wb") as file:
            np.savez(file, **dict(arrays))  # type: ignore[arg-type]
        return path

    return write


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net as npuc.save writes it: three calls of 8 with answers, four for calibration."""
    from npuc import record

    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("recorded") / "net.pt"
    calls = [torch.randn(8, 1, 6, 6) for _ in range(7)]
    record.save(
        make_net(), calls[0], path, samples=calls[:3], calibration=calls[3:],
        dynamic_shapes={"x": {0: "batch"}},
    )  # fmt: skip
    return path


@pytest.fixture(scope="session")
def artifacts(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """`recorded`, compiled for each target with its defaults. Tests must not write to them."""
    from npuc import pipeline

    folder = tmp_path_factory.mktemp("artifacts")
    done = pipeline.compile(recorded, target=["cpu", "atom"], output=folder)
    return {c.report.target: c.artifact_path for c in done}


class Balanced(HTMLParser):
    """Fails on tags that are not closed in order, and collects what a page would fetch."""

    VOID = frozenset({"meta", "line", "rect", "br", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the tag."""
        if tag not in self.VOID:
            self.open.append(tag)
        found = [v or "" for k, v in attrs if k in ("src", "href")]
        self.links += [link for link in found if not link.startswith("#")]

    def handle_endtag(self, tag: str) -> None:
        """Match it with the last one that is open."""
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture
def whole() -> Callable[[str], None]:
    """Check that a page is well-formed and asks for nothing."""

    def check(html: str) -> None:
        parser = Balanced()
        parser.feed(html)
        assert parser.open == [] and parser.links == []
        assert "://" not in html and "@import" not in html and "url(" not in html
        assert "viewport" in html

    return check
