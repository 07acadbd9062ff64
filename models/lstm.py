"""A bidirectional LSTM that reads an image row by row, as a recogniser of speech reads frames."""

from torch import Tensor, nn


class RowLSTM(nn.Module):
    """Rows (N, steps, features) → class logits (N, classes): each step votes, the mean decides.

    Any number of steps is taken.
    """

    def __init__(self, features: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, rows: Tensor) -> Tensor:
        steps, _ = self.lstm(rows)
        votes: Tensor = self.head(steps)
        return votes.mean(dim=1)


def digits_lstm() -> RowLSTM:
    """Return the network for the 8 rows of 8 pixels of a digit."""
    return RowLSTM(8, 48, 10)
