"""Pictures of images; apart from the report, so that only pages that show images depend on how images are read."""

import numpy as np

from entropic.images.data import check_images


def draw_montage(rows, names, titles=None):
    """A figure of rows of images side by side, uint8 (N, C, H, W) each, with the rows' names at the left.

    rows: a list of such rows, or, with `titles`, a list of blocks of them, drawn one above the other.
    ValueError: images of another type or shape.
    """
    import matplotlib.pyplot as plt

    blocks = [rows] if titles is None else rows
    shape = check_images(blocks[0][0], name="rows").shape[1:]
    for block in blocks:
        for row in block:
            check_images(row, shape, "rows")
    count, side = sum(map(len, blocks)), blocks[0][0].shape
    height = 7.0 * count * side[2] / (side[0] * side[3]) + 0.4 * len(blocks)
    fig, axes = plt.subplots(len(blocks), 1, figsize=(7.6, height), squeeze=False)
    for axis, block, title in zip(axes[:, 0], blocks, titles or [""], strict=True):
        lines = [np.concatenate(list(np.moveaxis(np.asarray(row), 1, -1)), 1) for row in block]
        picture = np.concatenate(lines).squeeze()
        axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        ticks = [side[2] * (i + 0.5) for i in range(len(block))]
        axis.set(xticks=[], yticks=ticks, yticklabels=names, title=title)
        axis.tick_params(length=0)
        axis.grid(False)
        for spine in axis.spines.values():
            spine.set_visible(False)
    return fig
