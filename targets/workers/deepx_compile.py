"""Compile model.onnx beside this file into model.dxnn with DEEPX's compiler.

    python compile.py

Needs the Python environment in which dx-com and torch are installed, and nothing else: npuc runs
this file there, and puts it into every hand-over kit. `request.json` names the inputs and the
calibration method; the calibration data is in `calibration/`.
"""

import json
from pathlib import Path
from typing import Any


def main(folder: Path) -> None:
    """Read the kit in `folder`, write model.dxnn there."""
    request = json.loads((folder / "request.json").read_text())
    import dx_com  # pyright: ignore[reportMissingImports]

    dx_com.compile(
        model=str(folder / "model.onnx"),
        output_dir=str(folder),
        dataloader=loader(folder, request["inputs"], request["calls"]),
        calibration_method=request["settings"]["method"],
        calibration_num=request["calls"],
        opt_level=request["settings"]["opt_level"],
    )
    print(f"model.dxnn: dx-com {getattr(dx_com, '__version__', 'of unknown version')}")


def loader(folder: Path, inputs: list[dict[str, Any]], count: int) -> Any:
    """Return the calibration calls as dx-com wants them: a loader of batch 1.

    Items have no batch axis, which is 1. One input is a tensor, several are a dict by input name.
    """
    import numpy as np
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Calls(Dataset[Any]):
        def __len__(self) -> int:
            return count

        def __getitem__(self, number: int) -> Any:
            call = {}
            for port in inputs:
                array = np.load(folder / port["folder"] / f"{number:04}.npy", allow_pickle=False)
                call[port["name"]] = torch.from_numpy(array[0])
            return call if len(call) > 1 else next(iter(call.values()))

    return DataLoader(Calls(), batch_size=1, shuffle=False)


if __name__ == "__main__":
    main(Path(__file__).resolve().parent)
