"""Frames of a video file as JPEGs, by PyAV (FFmpeg)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foldwise.errors import Refusal
from foldwise.unpacking.rows import Unpacked

if TYPE_CHECKING:
    from av import VideoFrame

SUFFIXES: tuple[str, ...] = (
    ".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".asf", ".ts", ".gif",
)  # fmt: skip
QUALITY = 90  # of the JPEGs


@dataclass(frozen=True)
class Video:
    """Takes frames at even distances in time.

    Attributes:
        fps: frames per second; the first frame is taken, then the first one at or after each 1 / fps seconds.
        most: maximum number of frames.
        size: longest side in pixels; None: as stored. Frames are never enlarged.
    """

    fps: float = 1.0
    most: int | None = None
    size: int | None = None

    def unpack(self, path: Path, folder: Path) -> list[Unpacked]:
        """Write the frames of a file to `folder`, numbered from 0; return their rows.

        A damaged packet costs its frames; their number is in the column `damaged`. Refusal if no frame can be decoded.
        """
        import av

        try:
            with av.open(str(path), metadata_errors="replace") as container:
                if not container.streams.video:
                    raise Refusal("it has no video stream")
                stream = container.streams.video[0]
                stream.thread_type = "NONE"  # processes share the cores
                rate, codec = stream.average_rate, stream.codec_context.name
                bits = container.bit_rate or None
                damage: list[int] = []
                rows, seconds, height, width = [], 0.0, 0, 0
                for number, (seconds, frame) in enumerate(self._take(container, damage)):
                    height, width = frame.height, frame.width
                    name = f"{number:05d}.jpg"
                    self._fit(frame).save(folder / name, quality=QUALITY)
                    rows.append((name, number, seconds))
                length = None if container.duration is None else container.duration / av.time_base
        except av.error.FFmpegError as error:
            raise Refusal(f"it cannot be decoded ({error.strerror})") from error
        if not rows:
            raise Refusal("no frame of it can be decoded")
        bytes_ = path.stat().st_size
        facts: dict[str, Any] = {
            "width": width,
            "height": height,
            "fps": None if rate is None else round(float(rate), 3),
            "seconds": round(seconds if length is None else length, 3),
            "bytes": bytes_,
            "bit_rate": bits,
            "codec": codec,
            "damaged": len(damage),
        }
        return [Unpacked(name, "", order, {"time": round(time, 3), **facts}) for name, order, time in rows]

    def _take(self, container: Any, damage: list[int]) -> "Iterator[tuple[float, VideoFrame]]":
        """Yield the chosen frames with their seconds from the first one."""
        taken, first = 0, None
        for frame in _decode(container, damage):
            time = frame.time if frame.time is not None else 0.0
            first = time if first is None else first
            if time - first < taken / self.fps - 1e-6:
                continue
            yield time - first, frame
            taken += 1
            if taken == self.most:
                return

    def _fit(self, frame: "VideoFrame") -> Any:
        image = frame.to_image()
        if self.size is not None and max(image.size) > self.size:
            image.thumbnail((self.size, self.size))
        return image


def _decode(container: Any, damage: list[int]) -> "Iterator[VideoFrame]":
    """Decode packet by packet, so that a damaged one does not end the file; collects its number in `damage`."""
    import av

    packets = container.demux(video=0)
    number = 0
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:  # the container is cut off: what was read stays
            damage.append(number)
            return
        if packet is None:
            return
        try:
            yield from packet.decode()
        except av.error.FFmpegError:
            damage.append(number)
        number += 1
