"""Figure of the training phases: learning rate, trainable share, image size and augmentation over the epochs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from foldwise.reporting.figures import color_of, new_figure, shorten
from foldwise.schedule.phases import Phase

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABEL: Any = {"ha": "center", "va": "bottom", "fontsize": 8}


@dataclass(frozen=True)
class PhasePreview:
    """A phase and its settings."""

    phase: Phase
    share: float  # of trainable parameters, in [0, 1]
    image_size: tuple[int, int]  # (height, width)
    augmentations: list[str]  # names of the transforms, including mixup and the like
    lrs: list[tuple[float, float]]  # lowest and highest over all layers, at equidistant points of the phase
    plateau: bool  # whether the learning rate drops when the validation loss stops improving


def phases_figure(previews: Sequence[PhasePreview]) -> "Figure":
    """Draw the phases over the epochs, one panel per setting.

    With layer decay, the learning rate is a band from the first layer to the head.
    """
    ends = list(accumulate(part.phase.epochs for part in previews))
    starts = [0, *ends[:-1]]
    names = list(dict.fromkeys(name for part in previews for name in part.augmentations)) or ["none"]
    heights = (3, 1.2, 1.2, 0.4 + 0.22 * len(names))
    figure = new_figure(10, 0.9 + sum(heights))
    axes = figure.subplots(4, 1, sharex=True, height_ratios=heights)
    lr, share, size, augmentation = axes
    for number, (part, start, end) in enumerate(zip(previews, starts, ends, strict=True)):
        low, high = np.array(part.lrs).T
        epochs = np.linspace(start, end, len(high))
        color = color_of(number)
        lr.fill_between(epochs, low, high, color=color, alpha=0.3, linewidth=0)
        lr.plot(epochs, high, color=color)
        share.fill_between([start, end], 0, 100 * part.share, color=color, alpha=0.5, linewidth=0)
        size.plot([start, end], [max(part.image_size)] * 2, color=color, linewidth=3, solid_capstyle="butt")
        rows = [names.index(name) for name in part.augmentations]
        augmentation.barh(rows, end - start, left=start, color=color, alpha=0.5, height=0.8)
        middle, (height, width) = (start + end) / 2, part.image_size
        lr.text(middle, 1.02, _title(part), transform=lr.get_xaxis_transform(), **LABEL)
        share.text(middle, 50, f"{100 * part.share:.3g} %", **LABEL)
        size.text(middle, 1.05 * max(height, width), f"{height} x {width}", **LABEL)
        for axis in axes:
            axis.axvline(end, color="0.6", linewidth=0.8)
    lr.set(yscale="log", ylabel="learning rate")
    share.set(ylim=(0, 105), ylabel="trains, %")
    size.set(ylabel="image side")
    size.margins(y=1)
    augmentation.set_yticks(range(len(names)), [shorten(name) for name in names], fontsize=8)
    augmentation.set(xlabel="epoch", xlim=(0, ends[-1]), ylim=(len(names) - 0.5, -0.5))
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure


def _title(part: PhasePreview) -> str:
    """The name of a phase, and settings that have no panel."""
    phase = part.phase
    notes = {
        "drops at a plateau": part.plateau,
        f"{phase.rows} rows": phase.rows,
        "from the best": phase.start == "best",
        "snapshot": phase.snapshot,
    }
    return "\n".join([*(note for note, holds in notes.items() if holds), shorten(phase.name)])
