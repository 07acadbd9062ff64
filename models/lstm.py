"""LSTMs: one reads an image row by row, one reads frames of speech."""

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


class FrameLSTM(nn.Module):
    """Frames (N, steps, features) → logits of characters per frame (N, steps, characters)."""

    def __init__(self, features: int, hidden: int, depth: int, characters: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, depth, batch_first=True)
        self.head = nn.Linear(hidden, characters)

    def forward(self, frames: Tensor) -> Tensor:
        steps, _ = self.lstm(frames)
        logits: Tensor = self.head(steps)
        return logits


def speech_lstm() -> FrameLSTM:
    """Return two layers of 512 over frames of 80 mel bands, as for recognition by CTC."""
    return FrameLSTM(80, 512, 2, 32)
