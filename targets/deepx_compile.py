"""Compile model.onnx beside this file into model.dxnn with DEEPX's compiler.

    python compile.py

Needs the Python environment in which dx-com and torch are installed, and nothing else: npuc runs
this file there, and puts it into every hand-over kit. `request.json` names the inputs and the
calibration method; the calibration data is in `calibration/`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


def main(folder: Path) -> None:
    """Read the kit in `folder`, write model.dxnn there."""
    request = json.loads((folder / "request.json").read_text())
    import dx_com  # pyright: ignore[reportMissingImports]

    calls = Calls(folder, request["inputs"], request["calls"])
    dx_com.compile(
        model=str(folder / "model.onnx"),
        output_dir=str(folder),
        dataloader=DataLoader(calls, batch_size=1, shuffle=False),
        calibration_method=request["settings"]["method"],
        calibration_num=request["calls"],
        opt_level=request["settings"]["opt_level"],
    )
    print(f"model.dxnn: dx-com {getattr(dx_com, '__version__', 'of unknown version')}")


class Calls(Dataset[Any]):
    """The calibration calls as dx-com wants them: without the batch axis, which is 1.

    One input is a tensor, several are a dict by input name.
    """

    def __init__(self, folder: Path, inputs: list[dict[str, Any]], count: int) -> None:
        self._folders = {port["name"]: folder / port["folder"] for port in inputs}
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Any:
        if not 0 <= number < self._count:
            raise IndexError(number)
        call = {
            name: torch.from_numpy(np.load(folder / f"{number:04}.npy", allow_pickle=False)[0])
            for name, folder in self._folders.items()
        }
        return call if len(call) > 1 else next(iter(call.values()))


if __name__ == "__main__":
    main(Path(__file__).resolve().parent)
