"""How many pixels and channels a product computes at once: what its accumulators leave room for."""

from dataclasses import dataclass

from npuc.targets.tvm.cpu_level import Level


@dataclass(frozen=True, slots=True)
class Tile:
    """Pixels and vectors of output channels that one pass over the input computes."""

    rows: int
    vectors: int


PACKED = 4
"""Vectors of channels whose codes one store takes, in a CPU of 32 registers: with as many in a
tile, a ResNet-50's convolutions take 2 to 8 % less time than with two."""


MORE = 24
"""Accumulators that still leave room for a step's weights and input among 32 registers."""


def tile_for(
    pixels: int, vectors: int, level: Level, *, packed: bool = False, line: bool = False
) -> Tile:
    """Choose a tile: at most 16 accumulators (12 where there are 16 registers), even rows.

    `packed` says that its results are codes to be stored together. `line` says that `pixels` are
    those of one line, whose last tile comes again and again: where it would be half a tile or
    less, as 2 of 14 pixels are in tiles of 4, there may be 24 accumulators in 32 registers.
    """
    budget = 12 if level.lanes == 8 else 16
    least = PACKED if packed and level.lanes == 16 and vectors % PACKED == 0 else 2
    wide = min(vectors, max(least, budget // max(pixels, 1)))
    rows = _even(pixels, budget // wide)
    if line and level.lanes == 16 and 0 < pixels % rows <= rows // 2:
        more = _even(pixels, MORE // wide)
        rows = more if -(-pixels // more) < -(-pixels // rows) else rows
    return Tile(rows, wide)


def _even(pixels: int, most: int) -> int:
    """Cut pixels into as few tiles of up to `most` as will do, of about the same size."""
    return -(-pixels // -(-pixels // min(pixels, most)))


def cut(pixels: int, tile: Tile, level: Level) -> tuple[int, int]:
    """Cut pixels into tiles and a last one of what is left; return how many, and its pixels.

    A rest of up to half a tile makes the last tile larger where there are registers for it: by
    itself it would wait for its few sums as long as a whole tile takes.
    """
    whole, left = divmod(pixels, tile.rows)
    room = level.lanes == 16 and (tile.rows + left) * tile.vectors <= MORE
    if whole and 0 < left <= tile.rows // 2 and room:
        return whole - 1, tile.rows + left
    return whole, left
