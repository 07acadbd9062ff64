"""Portability as a callback of a Lightning trainer, or of any with the same hooks."""

import sys
from typing import TYPE_CHECKING, Any

from npuc.training.watch import Watch

if TYPE_CHECKING:
    _Callback = object
else:

    def _base() -> type:
        """Lightning's own class where it is installed: its trainer asks for more than one hook."""
        names = ["lightning.pytorch", "pytorch_lightning"]
        names.sort(key=lambda name: name not in sys.modules)  # the one that is in use, first
        for name in names:
            try:
                return __import__(name, fromlist=["Callback"]).Callback
            except ModuleNotFoundError as error:
                if error.name != name.partition(".")[0]:
                    raise  # it is installed, and broken
        return object

    _Callback = _base()


class LightningPortability(Watch, _Callback):
    """Logs the model's portability every `every` optimizer steps: see `Watch` for what it takes.

    Numbers go through ``pl_module.log_dict``, or ``trainer.logger`` where there is no such. In a
    run of several processes the first one looks.
    """

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look, where it is time to."""
        step = int(trainer.global_step)
        if not getattr(trainer, "is_global_zero", True) or not self.due(step):
            return
        numbers = self.look(step, pl_module)
        if callable(log := getattr(pl_module, "log_dict", None)):
            log(numbers, on_step=True, on_epoch=False, rank_zero_only=True, batch_size=1)
        elif (logger := getattr(trainer, "logger", None)) is not None:
            logger.log_metrics(numbers, step=step)
