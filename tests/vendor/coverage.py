"""Which reference model the vendors' own compilers take, recorded from real runs.

    python tests/vendor/coverage.py run ethos-u55 digits-mobilenet text-bert
    python tests/vendor/coverage.py add digits-mobilenet.ethos-u55.npuc
    python tests/vendor/coverage.py

The first compiles and records, the second records artifacts that are there, the third prints the
table of what is recorded (``coverage.json``) in Markdown. The compilers must be installed:
``npuc toolchain install``. Nothing runs on a device, but OpenVINO on this CPU.
"""

import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("coverage.json")
SECONDS = 900.0
"""What one model may take by default; RNGD's compiler searches for minutes."""

ORDER = ("rngd", "ethos-u55", "ethos-u65", "ethos-u85", "openvino")
WORDS = 160
"""Characters of a vendor's error that the table shows."""


def run(target: str, model: str, timeout: float = SECONDS) -> dict[str, Any]:
    """Compile a reference model for a target with its vendor's compiler, and describe it."""
    import npuc
    from npuc.errors import NpucError

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.npuc"
        try:
            npuc.compile(
                f"zoo:{model}", target=target, output=path, vendor="require", timeout=timeout
            )
        except NpucError as error:
            return {"target": target, "model": model, "error": last(error.message)}
        return described(path, model)


def described(path: Path, model: str = "") -> dict[str, Any]:
    """Describe what the vendor's compiler made, from the artifact alone."""
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        names = archive.namelist()
        sizes = {
            name.removeprefix("vendor/"): archive.getinfo(name).file_size
            for name in names
            if name.endswith((".edf", ".pte", "openvino.xml", "openvino.bin"))
        }
        known = "vendor/summary.json" in names
        summary = json.loads(archive.read("vendor/summary.json")) if known else {}
    found = {
        "target": manifest["target"],
        "model": model or path.name.split(".")[0],
        "precision": manifest["precision"],
        "evidence": manifest["evidence"],
        "said": manifest["vendor"],
        "bytes": sizes,
    }
    return found | {k: summary[k] for k in ("delegation", "vela", "versions") if k in summary} | (
        {"parts": summary["parts"], "whole": summary["whole"], "reason": plain(summary["reason"]),
         "host": [{**h, "reason": plain(h["reason"])} for h in summary["host"]]}
        if "parts" in summary else {}
    )  # fmt: skip


def record(item: dict[str, Any]) -> None:
    """Put a result in the place of an earlier one of the same model and target."""
    items = [i for i in recorded() if (i["target"], i["model"]) != (item["target"], item["model"])]
    items = sorted([*items, item], key=lambda i: (i["target"], i["model"]))
    RECORD.write_text(json.dumps(items, indent=1, sort_keys=True) + "\n")


def recorded() -> list[dict[str, Any]]:
    """Return every result on record."""
    items: list[dict[str, Any]] = json.loads(RECORD.read_text()) if RECORD.exists() else []
    return items


def cell(item: dict[str, Any] | None) -> str:
    """Say one result in a few words, the vendor's where it failed."""
    if item is None:
        return "not tried"
    if "error" in item:
        return f"fails: {item['error']}"
    size = sum(item["bytes"].values()) / 1000
    if "delegation" in item:
        about = item["delegation"]
        total = about["delegated_nodes"] + about["host_nodes"]
        cycles = sum(part.get("cycles_total", 0.0) for part in item["vela"])
        sram = max((part.get("sram_memory_used", 0.0) for part in item["vela"]), default=0.0)
        return (
            f"{size:.0f} kB, {about['delegated_nodes']}/{total} nodes delegated, "
            f"{cycles / 1000:.0f}k cycles, {sram:.0f} KiB SRAM (Vela's estimates)"
        )
    if "parts" in item:
        if item["whole"]:
            return f"{size:.0f} kB, whole"
        count = sum(len(part["nodes"]) for part in item["parts"])
        left = f"; first left out: {item['host'][0]['reason']}" if item["host"] else ""
        return (
            f"{size:.0f} kB, {count}/{count + len(item['host'])} nodes in {len(item['parts'])} "
            f"parts; whole: {item['reason']}{left}"
        )
    return f"{size:.0f} kB, ran on this CPU"


def plain(text: str) -> str:
    """Return an error's innermost cause, fit for a table."""
    if "actic failure summary" in text or "---+" in text:  # a drawing of the graph follows
        return "Tactic failure summary"
    lines = [line.strip() for line in text.partition("Location:")[0].splitlines() if line.strip()]
    words = (lines[-1] if lines else text.strip()).replace("|", "\\|")
    return words if len(words) <= WORDS else words[:WORDS] + "…"


def last(message: str) -> str:
    """Return the last line of an error's message: the vendor's own words, as npuc shows them."""
    return plain(message.strip().splitlines()[-1])


def table() -> str:
    """Return what is recorded in Markdown: a row for each model, a column for each target."""
    items = {(i["target"], i["model"]): i for i in recorded()}
    targets = [t for t in ORDER if any(t == target for target, _ in items)]
    models = sorted({model for _, model in items})
    lines = [f"| model | {' | '.join(targets)} |", "|---" * (len(targets) + 1) + "|"]
    for model in models:
        cells = (cell(items.get((target, model))) for target in targets)
        lines.append(f"| `{model}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(words: list[str]) -> None:
    """Run, add or print."""
    if words[:1] == ["run"]:
        for model in words[2:]:
            item = run(words[1], model)
            record(item)
            print(f"{model} for {words[1]}: {cell(item)}", flush=True)
    elif words[:1] == ["add"]:
        for name in words[1:]:
            record(described(Path(name)))
    else:
        print(table())


if __name__ == "__main__":
    main(sys.argv[1:])
