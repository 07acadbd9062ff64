"""A bidirectional LSTM that reads an image row by row, as a recogniser of speech reads frames."""

import torch
from torch import Tensor, nn


class RowLSTM(nn.Module):
    """Rows (N, steps, features) → class logits (N, classes), from the last state each way."""

    def __init__(self, features: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, rows: Tensor) -> Tensor:
        _, (last, _) = self.lstm(rows)
        logits: Tensor = self.head(torch.cat([last[0], last[1]], dim=1))
        return logits


def digits_lstm() -> RowLSTM:
    """Return the network for the 8 rows of 8 pixels of a digit."""
    return RowLSTM(8, 48, 10)
