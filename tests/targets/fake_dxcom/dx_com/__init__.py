"""A stand-in for DEEPX's `dx_com` that enforces its documented interface; it compiles nothing."""

from pathlib import Path
from typing import Any

import misbehave

__version__ = "2.5.0"
misbehave.at_start()


def compile(
    *,
    model: Any,
    output_dir: Any,
    config: Any = None,
    dataloader: Any = None,
    calibration_method: str = "ema",
    calibration_num: int = 100,
    opt_level: int = 1,
) -> None:
    """Check every argument as documented, look at the data, write ``<model>.dxnn``."""
    misbehave.in_call()
    import handed
    import torch
    from torch.utils.data import DataLoader, Dataset

    if (config is None) == (dataloader is None):
        raise ValueError("config and dataloader are exclusive, and one is needed")
    if not isinstance(output_dir, str) or opt_level not in (0, 1):
        raise TypeError(f"{output_dir!r}, opt_level={opt_level!r}")
    if calibration_method not in ("ema", "minmax", "iqr"):
        raise ValueError(f"ConfigInputError: calibration_method {calibration_method!r}")
    if not isinstance(dataloader, DataLoader) or not isinstance(dataloader.dataset, Dataset):
        raise TypeError(f"no torch DataLoader over a Dataset: {dataloader!r}")
    if dataloader.batch_size != 1 or not 0 < calibration_num <= len(dataloader):
        raise ValueError(f"batch {dataloader.batch_size}, {calibration_num} of {len(dataloader)}")
    shapes = handed.inputs(handed.model(model, 11, 21, 10))
    if wide := [name for name, shape in shapes.items() if shape[:1] != [1]]:
        raise ValueError(f"NotSupportError: the batch size of {wide} is not 1")
    sums = []
    for call in dataloader:
        named: Any = call
        if isinstance(call, torch.Tensor) and len(shapes) == 1:
            named = {next(iter(shapes)): call}
        if {k: list(v.shape) for k, v in named.items()} != shapes:
            raise ValueError(f"ConfigInputError: {named.keys()} do not fit {shapes}")
        if any(v.dtype != torch.float32 for v in named.values()):
            raise TypeError("calibration tensors should be float32")
        sums.append(sum(float(v.double().sum()) for v in named.values()))
    path = Path(output_dir) / f"{Path(model).stem}.dxnn"
    seen = {"method": calibration_method, "calls": calibration_num, "inputs": shapes, "sums": sums}
    misbehave.write(path, b"FAKE-DXNN", **seen)
