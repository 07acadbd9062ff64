"""Around the detector: its training loss, the suppression of doubles, mean average precision."""

import torch
import torch.nn.functional as F
from torch import Tensor

from npuc.models.detector import cell_centres

Outputs = tuple[Tensor, ...]

_SIZE, _REACH = 48, 6.0


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection over union of boxes (..., 4), broadcasting the leading dims."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:4], b[..., 2:4])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(box[..., 2:4] - box[..., :2]).clamp(min=0).prod(-1) for box in (a, b)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-6)


def loss(outputs: Outputs, truth: Tensor) -> Tensor:
    """Return the mean loss of a batch; truth is int64 (N, boxes, 5) padded with -1.

    A cell is responsible for a box whose centre is within 6 pixels of its own, so one box
    teaches one to four cells. Objectness and class learn by cross entropy, boxes by 1 - IoU.
    """
    scores, boxes, objectness = outputs
    real = truth[..., 4] >= 0
    middle = (truth[..., :2] + truth[..., 2:4]).float() / 2
    apart = (middle[:, :, None] - cell_centres(_SIZE)).abs().amax(-1)  # (N, boxes, cells)
    apart = apart.masked_fill(~real[..., None], torch.inf)
    nearest, box = apart.min(1)
    taken = nearest < _REACH
    wanted = torch.gather(truth, 1, box[..., None].expand(-1, -1, 5))[taken]
    seen = F.binary_cross_entropy(objectness, taken.float())
    classes = F.one_hot(wanted[:, 4], scores.shape[-1]).float()
    named = F.binary_cross_entropy(scores[taken], classes)
    placed = (1 - overlap(boxes[taken], wanted[:, :4].float())).mean()
    far = F.l1_loss(boxes[taken], wanted[:, :4].float())  # has a slope where nothing overlaps
    return 3 * seen + 3 * named + 2 * placed + 0.05 * far


def suppress(outputs: Outputs, floor: float = 0.05, share: float = 0.5) -> list[Tensor]:
    """Return detections of each image, best first: (found, 6) as box, class, confidence.

    Confidence is objectness times the best class score. A box is dropped where a better one of
    any class overlaps it by more than `share`.
    """
    found = []
    for scores, boxes, objectness in zip(*outputs, strict=True):
        best, label = (scores * objectness[:, None]).max(-1)
        rows = torch.cat([boxes, label[:, None], best[:, None]], dim=1)
        rows = rows[best > floor]
        rows = rows[rows[:, 5].argsort(descending=True)]
        kept: list[Tensor] = []
        for row in rows:
            if all(float(overlap(row, other)) <= share for other in kept):
                kept.append(row)
        found.append(torch.stack(kept) if kept else rows)
    return found


def average_precision(outputs: Outputs, truth: Tensor) -> float:
    """Return mAP at IoU 0.5: area under the precision-recall curve, averaged over the classes.

    The curve is the exact one (precision made monotone), not the 11-point form.
    """
    found = suppress(outputs)
    classes = set(truth[..., 4].flatten().tolist()) - {-1}
    return sum(_precision_of(found, truth, label) for label in classes) / len(classes)


def _precision_of(found: list[Tensor], truth: Tensor, label: int) -> float:
    ranked = [
        (float(row[5]), image, row)
        for image, rows in enumerate(found)
        for row in rows
        if int(row[4]) == label
    ]
    ranked.sort(key=lambda item: -item[0])
    taken: set[tuple[int, int]] = set()
    hits = torch.zeros(len(ranked))
    for rank, (_, image, row) in enumerate(ranked):
        shares = overlap(row, truth[image].float()) * (truth[image, :, 4] == label)
        place = (image, int(shares.argmax()))
        if float(shares.max()) >= 0.5 and place not in taken:
            taken.add(place)
            hits[rank] = 1
    total = int((truth[..., 4] == label).sum())
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    monotone = precision.flip(0).cummax(0).values.flip(0)
    return float((monotone * hits).sum() / total)
