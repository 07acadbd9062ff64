"""Portability as a `TrainerCallback` of Hugging Face transformers."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from npuc.training.watch import Watch

LABELS = ("labels",)
"""What a batch of a Trainer holds beside its inputs, where its arguments name nothing else."""

if TYPE_CHECKING:
    _Callback = object
else:
    try:
        from transformers import TrainerCallback as _Callback
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise  # it is installed, and broken
        _Callback = object


class HuggingFacePortability(Watch, _Callback):
    """Logs the model's portability every `every` optimizer steps: see `Watch` for what it takes.

    A Trainer does not hand itself to its callbacks. Set `log` once there is one,
    ``callback.log = trainer.log``, and its reporters (TensorBoard, W&B) get the numbers. Without,
    they go to ``state.log_history`` and into the Trainer's next log, which the console shows.

    The Trainer's label names are no inputs here, unless `labels` says otherwise. In a run of
    several processes the first one looks.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.log: Callable[[dict[str, float]], None] | None = None
        self._next: dict[str, float] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look, where it is time to."""
        step = int(state.global_step)
        if not getattr(state, "is_world_process_zero", True) or not self.due(step):
            return
        labels = tuple(getattr(args, "label_names", None) or LABELS)
        numbers = self.look(step, kwargs["model"], labels=labels)
        if self.log is not None:
            self.log(numbers)
            return
        entry = {**numbers, "step": step, "epoch": getattr(state, "epoch", None)}
        state.log_history.append(entry)
        self._next = numbers

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the latest numbers with the Trainer's own."""
        if logs is not None:
            logs.update(self._next)
        self._next = {}
