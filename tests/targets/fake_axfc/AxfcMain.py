"""A stand-in for the AIX front end that enforces its documented command line and input.

Like the real one it ends with status 0 where it prints an error.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fake_common"))

import misbehave


def main() -> None:
    """Parse as documented, check the model and the calibration table, write an AIXGraph."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-m", required=True)
    parser.add_argument("-i", required=True)
    parser.add_argument("-k", required=True)
    parser.add_argument("-c")
    parser.add_argument("-o", required=True)
    parser.add_argument("-f", choices=("binary", "text"), default="binary")
    if sys.argv[1:] == ["--help"]:
        parser.print_help()
        return
    misbehave.at_start()
    asked = parser.parse_args()
    misbehave.in_call()
    if not Path(asked.m).is_file():
        print(f"Invalid path to an MD file: {asked.m}")
        return

    import handed

    proto = handed.model(asked.i, 1, 17, 10)
    if not Path(asked.k).is_dir():
        raise ValueError(f"no launcher: {asked.k}")
    rows = Path(asked.c).read_text().splitlines()
    names = [v.name for v in proto.graph.input if v.name in handed.inputs(proto)]
    names += [node.name for node in proto.graph.node]
    peaks = {}
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        layer, kind, _, peak = row[3:].rsplit(None, 3)
        if int(row[:3]) != number or (layer.strip(), kind) != (name, "output"):
            raise ValueError(f"row {number} of the table is {row!r}, expected layer {name!r}")
        peaks[name] = float(peak)
    misbehave.write(Path(asked.o), b"FAKE-AIX", peaks=peaks, inputs=handed.inputs(proto))


main()
