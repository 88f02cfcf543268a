"""Write and read MP4 files: H.264, yuv420p, BT.709, with the index at the front."""

import os
import re
import struct
from collections.abc import Collection, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.video.reformatter import Colorspace, VideoReformatter

from sanawm_env.system.files import MAX_PIXELS, check_count, check_number, explaining, open_file, reason
from sanawm_env.system.saving import replacing, with_sentence

_BT709 = 1
_LIMITED_RANGE = 1
_SMALL, _THREADS = 256 * 256, 4  # pixels for one thread, threads for more: x264's bytes depend on how many there are
MAX_UPSCALE, MAX_WRITTEN_PIXELS = 64, 2**25  # of a frame; 8K has fewer
MAX_DECODED_BYTES = 8 * 2**30
"""The most memory that `read_video` fills: a minute at 720p takes 2.7 GB."""


class VideoWriter(AbstractContextManager):
    """A context manager that encodes frames into an MP4.

    Until it is closed, the file is in the folder `video.mp4.part` beside its place, so a file with the final name
    always plays. An exception inside the block, Ctrl-C included, closes it too and keeps the frames so far. Without
    frames no file appears. The same frames and settings give the same bytes. H.264 with yuv420p needs even sizes: at an
    odd height (width) the last row (column) is doubled.

    Args:
        path: of the video; a file with this name is replaced.
        fps: frames per second, 0.01 to 1000.
        crf: quality of x264, 0 (lossless) to 51 (smallest file).
        upscale: every pixel becomes a square of this many pixels per side, 1 to 64.
        keyframes: frames from one keyframe to the next, 1 to 10,000; None for x264's 250. Small values are for
            datasets, whose readers seek to any frame. Then no frame depends on a later one, so that videos can be
            joined without encoding, and encoding is faster.

    Raises:
        ValueError: for values out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        fps: float = 16,
        crf: int = 18,
        upscale: int = 1,
        keyframes: int | None = None,
    ):
        check_number("fps of a video", fps, 0.01, 1000)
        check_number("crf of a video, from lossless to small,", crf, 0, 51)
        check_count("upscale of a video", upscale, 1, MAX_UPSCALE)
        if keyframes is not None:
            check_count("keyframes of a video, the frames between them,", keyframes, 1, 10_000)
        self.path = Path(path)
        self.num_frames = 0
        self._saving = replacing(self.path)
        self._rate = Fraction(fps).limit_denominator(1001)
        self._time_base = 1 / self._rate
        self._to_yuv = VideoReformatter()  # one for all frames: making one takes as long as encoding a small frame
        self._upscale = int(upscale)
        self._options = {"crf": str(crf), "mbtree": "0"}  # with its tree x264 gives other bytes now and then
        if keyframes is not None:
            self._options |= {"g": str(keyframes), "bf": "0", "preset": "veryfast"}
        self._shape: tuple[int, ...] | None = None
        self._out: tuple[OutputContainer, av.VideoStream] | None = None
        self._closed = False

    def __exit__(self, *exception) -> None:
        self.close()

    def append(self, frames: np.ndarray) -> None:
        """Encode frames (N, H, W, 3) uint8. All calls must have the same H and W.

        Raises:
            ValueError: for other arrays, for frames that are too large after upscaling, or after `close`.
            OSError: where the file cannot be written; it is removed then.
        """
        frames = np.asarray(frames)
        if self._closed:
            raise ValueError(f"{self.path} is closed, no frame can be added")
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape[1:]:
            raise ValueError(f"frames must be uint8 (N, H, W, 3), got {frames.dtype} {frames.shape}")
        if self._shape is not None and self._shape != frames.shape[1:]:
            raise ValueError(f"frames must keep the size {self._shape[:2]} of the first ones, got {frames.shape[1:3]}")
        if frames.shape[1] * frames.shape[2] * self._upscale**2 > MAX_WRITTEN_PIXELS:
            raise ValueError(
                f"frames of {frames.shape[1:3]} pixels, enlarged {self._upscale} times, are too large for a video: "
                "use a smaller upscale"
            )
        self._shape = frames.shape[1:]
        try:
            for frame in frames:
                self._encode(self._prepare(frame))
                self.num_frames += 1
        except OSError as error:  # PyAV's errors are OSErrors where the system refused something
            self.discard()
            raise with_sentence(error, f"cannot write the video {self.path}: {error.strerror or error}") from error

    def close(self) -> None:
        """Finish the file and give it its name. Further calls do nothing.

        Raises:
            OSError: where that fails; an older file with this name stays.
        """
        if self._closed:
            return
        if self._out is None or not self.num_frames:
            self.discard()
            return
        self._closed = True
        container, stream = self._out
        try:
            container.mux(stream.encode(None))
            container.close()
        except BaseException as error:
            self.discard()
            if isinstance(error, OSError):
                raise with_sentence(error, f"cannot write the video {self.path}: {error.strerror or error}") from error
            raise
        self._saving.__exit__(None, None, None)

    def _prepare(self, frame: np.ndarray) -> np.ndarray:
        if self._upscale > 1:
            frame = frame.repeat(self._upscale, axis=0).repeat(self._upscale, axis=1)
        odd_height, odd_width = frame.shape[0] % 2, frame.shape[1] % 2
        if odd_height or odd_width:
            frame = np.pad(frame, ((0, odd_height), (0, odd_width), (0, 0)), mode="edge")
        return np.ascontiguousarray(frame)

    def _encode(self, frame: np.ndarray) -> None:
        if self._out is None:
            self._out = self._open(*frame.shape[:2])
        container, stream = self._out
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        picture = self._to_yuv.reformat(
            picture, format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range="MPEG"
        )
        picture.pts = self.num_frames
        picture.time_base = self._time_base
        container.mux(stream.encode(picture))

    def _open(self, height: int, width: int) -> tuple[OutputContainer, av.VideoStream]:
        part = self._saving.__enter__()  # an absolute path: FFmpeg takes "12:30" for a protocol
        container = av.open(f"file:{part}", "w", format="mp4", options={"movflags": "+faststart"})
        stream = container.add_stream("libx264", rate=self._rate, options=self._options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        codec = stream.codec_context
        codec.thread_count = 1 if height * width <= _SMALL else _THREADS
        codec.color_primaries = codec.color_trc = codec.colorspace = _BT709
        codec.color_range = _LIMITED_RANGE
        return container, stream

    def discard(self) -> None:
        """Close without a file, after a failed write or instead of `close`."""
        self._closed, self.num_frames = True, 0
        with suppress(OSError):  # the disk that refused the frames refuses the index as well
            if self._out is not None:
                self._out[0].close()
        self._saving.discard()


def read_video(path: str | os.PathLike, most_bytes: int = MAX_DECODED_BYTES) -> np.ndarray:
    """Read all frames of an MP4 into memory.

    Args:
        path: of the video.
        most_bytes: limit of the decoded frames.

    Returns:
        (F, H, W, 3) uint8, rotated as the file says.

    Raises:
        FileNotFoundError: where there is no file.
        ValueError: for a file that is no video, or whose frames take more than `most_bytes`.
    """
    frames = iterate_video(path)
    first, most, count = next(frames), len(frame_times(path)), 0
    if most * first.nbytes > most_bytes:
        size = f"{most} frames take more than {most_bytes / 2**30:.3g} GiB"
        raise ValueError(f"the video {path} is refused: its {size}")
    video = np.empty((most, *first.shape), np.uint8)  # takes memory as it is filled
    for count, frame in enumerate(chain([first], frames), start=1):
        if count > len(video) or frame.shape != video.shape[1:]:
            raise ValueError(f"{path} cannot be read as a video: its frames differ in number or size from its index")
        video[count - 1] = frame
    return video[:count]


def iterate_video(path: str | os.PathLike, only: Collection[int] | None = None) -> Iterator[np.ndarray]:
    """Decode the frames of an MP4 one by one.

    Args:
        path: of the video.
        only: numbers of the frames to return; None for all.

    Yields:
        (H, W, 3) uint8, rotated as the file says (phones store upright videos sideways, with a note).

    Raises:
        FileNotFoundError: where there is no file.
        ValueError: for a file that is no video, has no frames, or cannot be decoded.
    """
    count, last = 0, None if only is None else max(only, default=-1)
    to_rgb = VideoReformatter()  # one for all frames: each would start and end threads of its own
    with open_video(path) as (container, stream):
        frames = container.decode(stream)
        while last is None or count <= last:
            # decoders raise many types for damaged files
            with explaining(f"{path} cannot be read as a video", Exception):
                frame = next(frames, None)
                picture = None if frame is None or (only is not None and count not in only) else _upright(frame, to_rgb)
            if frame is None:
                break
            count += 1
            if picture is not None:
                yield picture
    if not count:
        raise ValueError(f"the video {path} has no frames")


def frame_times(path: str | os.PathLike) -> np.ndarray:
    """The times at which the frames of an MP4 are shown, in seconds from the first: (F,) float64, ascending. Nothing is
    decoded.

    Raises:
        FileNotFoundError: where there is no file.
        ValueError: for a file that is no video.
    """
    said = explaining(f"{path} cannot be read as a video", (av.error.FFmpegError, ValueError))
    with open_video(path) as (container, stream), said:
        times = sorted(
            float(p.pts * p.time_base)
            for p in container.demux(stream)
            if p.pts is not None and not p.is_discard  # which is what an edit list leaves out
        )
    return np.array(times) - times[0] if times else np.zeros(0)


@contextmanager
def open_video(path: str | os.PathLike) -> Generator[tuple[InputContainer, av.VideoStream]]:
    """A context manager: an MP4 and its video stream. Nothing is decoded yet.

    Raises:
        FileNotFoundError: where there is no file.
        PermissionError: for a file that must not be read.
        ValueError: for a file that is no video, for frames of more than `MAX_PIXELS`, or an index that claims more
            frames than the file can hold.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no video at {path}")
    with ExitStack() as stack:
        try:
            check_samples(path)
            # and not a playlist that leads elsewhere, nor a protocol that the name seems to begin with
            container = stack.enter_context(av.open(f"file:{path}", format="mp4"))
            if not container.streams.video:
                raise ValueError("it has no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise ValueError("its codec is not known")
            width, height = stream.width, stream.height
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # whatever its frames say later
        except PermissionError:
            raise
        except Exception as error:  # demuxers raise many types for damaged files
            raise ValueError(f"{path} cannot be read as a video: {reason(error)}") from error
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"the video {path} is refused: its frames have {width} x {height} pixels, more than {MAX_PIXELS:,}"
            )
        yield container, stream


def rate_of(path: str | os.PathLike, stream: av.VideoStream) -> Fraction:
    """Frames per second. ValueError for a video that does not say it."""
    if not stream.average_rate:
        raise ValueError(f"the video {path} does not say how many frames per second it has")
    return stream.average_rate


def check_square(stream: av.VideoStream) -> None:
    """ValueError for a video whose pixels are not square, as cameras and networks assume. The sentence begins with "its
    pixels", so that the caller names the file.
    """
    ratio = stream.sample_aspect_ratio
    if ratio and ratio != 1:
        raise ValueError(
            f"its pixels are not square ({ratio.numerator}:{ratio.denominator}): write it anew with "
            '`ffmpeg -vf "scale=iw*sar:ih,setsar=1"`'
        )


def check_samples(path: Path) -> None:
    """ValueError if the index of an MP4 claims more frames than the file has bytes. FFmpeg allocates an entry for each
    claimed frame, and a few bytes can claim billions.
    """
    with open_file(path) as file:
        size, claimed, looked_at = os.fstat(file.fileno()).st_size, 0, 0
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if length == 1:
                length = int.from_bytes(file.read(8)) - 8
            inside = size if length == 0 else max(0, length - 8)
            if kind == b"mdat":
                file.seek(min(size, file.tell() + inside))
                continue
            index = file.read(min(inside, _MOST_INDEX))
            looked_at += 8 + len(index)
            if len(index) == _MOST_INDEX or looked_at > _MOST_INDEX:
                raise ValueError(f"its index takes more than {_MOST_INDEX >> 20} MB")
            if b"cmov" in index:
                raise ValueError("its index is compressed")
            for found in _COUNTS.finditer(index):  # wherever: boxes lie in boxes, and demuxers look into many
                at = found.end() + (4 if found[0] == b"trun" else 8)
                claimed += int.from_bytes(index[at : at + 4])
            if claimed > min(size, _MOST_SAMPLES):
                raise ValueError(f"its {size} bytes claim {claimed} frames")


_MOST_INDEX, _MOST_SAMPLES = 64 * 2**20, 4_000_000
_COUNTS = re.compile(b"stsz|stz2|trun")


def _upright(frame: av.VideoFrame, to_rgb: VideoReformatter) -> np.ndarray:
    """The frame (H, W, 3) uint8, rotated as its file says."""
    picture = to_rgb.reformat(frame, format="rgb24").to_ndarray()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5]  # x' = a x + c y, y' = b x + d y
    if not (a or b or c or d):
        return picture
    if (b or c) and (a or d):
        raise ValueError("its frames are rotated by an angle that is not a multiple of 90 degrees")
    if b or c:
        picture, a, d = picture.swapaxes(0, 1), c, b
    return np.ascontiguousarray(picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
