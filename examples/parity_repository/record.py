"""Record what the trained network answers, as meter.ref: what the gate holds every artifact to.

Run it after train.py, and after a change of model.py or data.py that is meant to change answers.
meter.ref.txt beside it says in words what was recorded, for those who review the change.
"""

import numpy as np
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

import npuc
from data import prepare, readings
from model import Meter

SAMPLES, CALIBRATION = 300, 64

torch.manual_seed(0)
model = Meter()
model.load_state_dict(load_file("checkpoint.safetensors"))
model.eval()

held_out, digits = readings(held_out=True)
seen, _ = readings(held_out=False)
npuc.save(
    model,
    prepare(held_out[:2]),
    "meter.pt",
    calibration=prepare(seen[:CALIBRATION]),
    samples=DataLoader(prepare(held_out[:SAMPLES]), 50),  # type: ignore[arg-type]
    dynamic_shapes={"image": {0: "batch"}},
    reference="meter.ref",
    strict=True,
)
np.savez("labels.npz", digits=digits[:SAMPLES].numpy().astype(np.uint8))
