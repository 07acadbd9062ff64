"""All seeded faults."""

from computing import FAULTS as COMPUTING
from exporting import FAULTS as EXPORTING
from lowering_faults import FAULTS as LOWERING
from passing import FAULTS as PASSING
from quantizing import FAULTS as QUANTIZING
from recording import FAULTS as RECORDING
from running import FAULTS as RUNNING
from seams import Fault

FAULTS: tuple[Fault, ...] = (
    *RECORDING, *EXPORTING, *PASSING, *QUANTIZING, *COMPUTING, *LOWERING, *RUNNING,
)  # fmt: skip
