"""Callbacks look every so many steps, log what they see, and never end a training run."""

import logging
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import npuc.training.callbacks as callbacks
from npuc.training.callbacks import HuggingFacePortability, LightningPortability, Watch
from npuc.training.watch import PATIENCE


@dataclass
class Logger:
    """What a Lightning trainer logs with."""

    seen: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def log_metrics(self, numbers: dict[str, float], step: int) -> None:
        self.seen.append((step, numbers))


class Lit(nn.Module):
    """A stand-in for a LightningModule: the network inside, and `log_dict`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.logged: list[dict[str, float]] = []

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y

    def log_dict(
        self, numbers: dict[str, float], logger: bool, rank_zero_only: bool, batch_size: int
    ) -> None:
        assert rank_zero_only and not logger
        self.logged.append(numbers)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def batches(callback: Any, trainer: Any, module: nn.Module, steps: list[int]) -> None:
    """Call the hook as Lightning does: after every batch, with the optimizer steps so far."""
    for index, step in enumerate(steps):
        trainer.global_step = step
        callback.on_train_batch_end(trainer, module, None, None, index)


def test_lightning_gets_numbers_at_their_steps(task: Any) -> None:
    logger, module = Logger(), Lit(task.model())
    trainer = SimpleNamespace(global_step=0, is_global_zero=True, loggers=[logger])
    watch = LightningPortability(task.images[:8], ["atom", "warboy"], every=2, layers=0)
    # Gradients are accumulated over two batches, and one step counts for two optimizers.
    batches(watch, trainer, module, [0, 1, 1, 2, 2, 3, 5])
    assert [step for step, _ in logger.seen] == [2, 5] == [step for step, _ in watch.history]
    assert [numbers for _, numbers in logger.seen] == module.logged
    for (_, numbers), (_, seen) in zip(logger.seen, watch.history, strict=True):
        assert numbers == {**seen.scalars(), "npuc/seconds": seen.seconds}
        assert numbers["npuc/atom/sqnr_db"] > 20


def test_any_trainer_with_the_hook_will_do(task: Any) -> None:
    logger = Logger()
    trainer = SimpleNamespace(global_step=0, logger=logger)
    watch = LightningPortability(
        task.images[:8], "atom", every=1, layers=0, module=lambda m: m.get_submodule("net"),
        prefix="chip",
    )  # fmt: skip
    batches(watch, trainer, nn.ModuleDict({"net": task.model()}), [1])
    ((step, numbers),) = logger.seen
    assert step == 1 and "chip/atom/sqnr_db" in numbers
    batches(watch, SimpleNamespace(is_global_zero=False), task.model(), [2])  # another process
    assert len(watch.history) == 1


def test_a_model_that_cannot_be_captured_is_told_once(
    task: Any, caplog: pytest.LogCaptureFixture
) -> None:
    logger = Logger()
    trainer = SimpleNamespace(global_step=0, loggers=[logger])
    watch = LightningPortability(task.images[:8], "atom", every=1)
    with caplog.at_level(logging.WARNING, "npuc"):
        batches(watch, trainer, Branch(), list(range(1, PATIENCE + 3)))
    assert [numbers for _, numbers in logger.seen] == [{"npuc/failed": 1.0}] * (PATIENCE + 2)
    (told,) = [record.getMessage() for record in caplog.records if record.name == "npuc"]
    assert "the model branches on the value of a tensor" in told
    batches(watch, trainer, task.model(), [100])  # it gave up
    assert not watch.history


def test_a_target_that_fails_leaves_the_others(task: Any, caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(task.images[:8], ["dx-m1", "atom"], every=1, layers=0)
    with caplog.at_level(logging.WARNING, "npuc"):
        found = [watch.look(step, task.model()) for step in (1, 2)]
    for numbers in found:
        assert numbers["npuc/dx-m1/failed"] == 1.0 and numbers["npuc/atom/sqnr_db"] > 20
    assert sum("dx-m1 takes batch 1 only" in r.getMessage() for r in caplog.records) == 1


def test_what_is_shown_may_fail_too(task: Any, caplog: pytest.LogCaptureFixture) -> None:
    def show(step: int, seen: object) -> None:
        raise OSError("no space left")

    watch = Watch(task.images[:8], "atom", layers=0, show=show)
    with caplog.at_level(logging.WARNING, "npuc"):
        assert watch.look(1, task.model()) == {"npuc/failed": 1.0}
    assert "OSError: no space left" in caplog.text


def test_it_knows_when_a_target_fell_below_the_bar(task: Any) -> None:
    from npuc.policy import Policy

    model = task.model()
    watch = Watch(task.images[:8], "atom", layers=0, policy=Policy(sqnr_db=20.0))
    watch.look(1, model)
    watch.options["policy"] = Policy(sqnr_db=90.0)
    watch.look(2, model)
    watch.look(3, model)
    assert watch.crossed("atom") == 2 and watch.crossed("warboy") is None


def test_iterables_are_read_once_and_draw_nothing(task: Any) -> None:
    torch.manual_seed(3)
    expected = torch.get_rng_state()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(task.images), 8, True)
    watch = Watch(task.images[:8], "atom", samples=loader, calibration=iter([task.images[:8]]))
    assert torch.equal(expected, torch.get_rng_state())
    assert len(watch.options["samples"]) == 8 and len(watch.options["calibration"]) == 1


class Keyed(nn.Module):
    """Takes labels as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        y = self.layer(x)
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(y, labels)}
        return {**loss, "logits": y}


def test_hugging_face_gets_an_entry_and_the_next_log() -> None:
    batch = {"x": torch.randn(4, 4), "labels": torch.tensor([0, 1, 2, 0])}
    state = SimpleNamespace(global_step=3, is_world_process_zero=True, log_history=[], epoch=0.5)
    args = SimpleNamespace(label_names=None)
    watch = HuggingFacePortability(batch, "atom", every=4, layers=0)
    watch.on_step_end(args, state, None, model=Keyed(), optimizer=None)
    assert state.log_history == []
    state.global_step = 4
    watch.on_step_end(args, state, None, model=Keyed(), optimizer=None)
    (entry,) = state.log_history
    assert (entry["step"], entry["epoch"]) == (4, 0.5) and entry["npuc/atom/sqnr_db"] > 20
    assert [d.output for d in watch.history[0][1].rows[0].outputs] == ["logits"]
    logs = {"loss": 1.0}
    watch.on_log(args, state, None, logs=logs)
    assert logs["npuc/atom/sqnr_db"] == entry["npuc/atom/sqnr_db"]
    later: dict[str, float] = {}
    watch.on_log(args, state, None, logs=later)
    assert later == {}

    logged: list[dict[str, float]] = []
    watch.log = logged.append
    state.global_step = 8
    watch.on_step_end(SimpleNamespace(label_names=["labels"]), state, None, model=Keyed())
    assert len(logged) == 1 and len(state.log_history) == 1


def test_names_are_loaded_when_they_are_asked_for() -> None:
    with pytest.raises(AttributeError, match="Keras"):
        _ = callbacks.Keras
    assert set(callbacks.__all__) == set(callbacks._HOMES)


@pytest.mark.filterwarnings("ignore")  # theirs
def test_a_real_lightning_trainer(task: Any, tmp_path: Any) -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Real(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = task.model()

        def forward(self, x: Tensor) -> Any:
            return self.net(x)

        def training_step(self, batch: Any, index: int) -> Any:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.05)

    def fit(*watching: Any) -> tuple[Any, Any]:
        torch.manual_seed(0)
        data = torch.utils.data.TensorDataset(task.images, task.labels)
        trainer = lightning.Trainer(
            max_epochs=1, callbacks=list(watching), logger=False, accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        module = Real()
        trainer.fit(module, torch.utils.data.DataLoader(data, 16, shuffle=True))
        return module, trainer

    watch = LightningPortability(task.images[:8], "atom", every=2, layers=0)
    assert isinstance(watch, lightning.Callback)
    (module, trainer), (alone, _) = fit(watch), fit()
    assert [step for step, _ in watch.history] == [2, 4]
    assert float(trainer.callback_metrics["npuc/atom/sqnr_db"]) > 20
    torch.testing.assert_close(module.state_dict(), alone.state_dict(), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore")  # theirs
def test_a_real_transformers_trainer(tmp_path: Any) -> None:
    pytest.importorskip("accelerate")
    hf = pytest.importorskip("transformers")
    rows = [
        {"input_ids": torch.arange(i, i + 8) % 20, "labels": torch.tensor(i % 2)} for i in range(16)
    ]
    batch = {name: torch.stack([row[name] for row in rows[:4]]) for name in rows[0]}

    def fit(*watching: Any) -> tuple[Any, Any]:
        torch.manual_seed(0)
        config = hf.BertConfig(
            vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=8,
        )  # fmt: skip
        arguments = hf.TrainingArguments(
            output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=4, logging_steps=2,
            report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        model = hf.BertForSequenceClassification(config)
        trainer = hf.Trainer(model, arguments, train_dataset=rows, callbacks=list(watching))
        trainer.train()
        return model, trainer

    watch = HuggingFacePortability(batch, "atom", every=2, layers=0)
    assert isinstance(watch, hf.TrainerCallback)
    (model, trainer), (alone, _) = fit(watch), fit()
    entries = [e for e in trainer.state.log_history if "npuc/atom/sqnr_db" in e]
    assert [e["step"] for e in entries] == [2, 4]
    torch.testing.assert_close(model.state_dict(), alone.state_dict(), rtol=0, atol=0)
