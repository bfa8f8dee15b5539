"""The Lightning module for one class a pixel."""

from foldwise.models.module import TrainingModule


class SegmentationModule(TrainingModule):
    """Softmax over the classes at each pixel. Targets are masks (B, H, W)."""
