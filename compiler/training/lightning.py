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

    Every logger of the trainer gets the numbers, at their step. With ``pl_module.log_dict`` they
    are in ``trainer.callback_metrics`` too, for checkpoints and early stopping to monitor. In a
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
        for logger in _loggers(trainer):
            logger.log_metrics(numbers, step=step)
        if callable(log := getattr(pl_module, "log_dict", None)):
            # Not to the loggers: they would get a number again at each step until the next one.
            log(numbers, logger=False, rank_zero_only=True, batch_size=1)


def _loggers(trainer: Any) -> list[Any]:
    if (found := getattr(trainer, "loggers", None)) is not None:
        return list(found)
    logger = getattr(trainer, "logger", None)
    return [] if logger is None else [logger]
