"""What sdkit reads at discovery. Imports no torch."""

from __future__ import annotations

from sdkit import Component, hookimpl

__all__ = ["sdkit_components"]

GENERATORS = (
    ("walk", "walk:Walk", "prompts and seeds travel: slerp of noise, mixed conditionings, closed loops", "latent-walk"),
    ("zoom", "zoom:Zoom", "zoom, pan and turn of a still", "kenburns"),
    ("feedback", "feedback:Feedback", "every frame is painted over the last one, warped (Deforum-like)", "deforum2d"),
    ("restyle", "restyle:Restyle", "a video painted over, frame by frame", "vid2vid"),
    ("keyframes", "keyframes:Keyframes", "from one given picture to the next", "looper"),
)
FILTERS = (
    ("blend", "filters:Blend", "frames in between, mixed of their neighbours; loops included", ""),
    ("flow", "flow:Flow", "frames in between that follow what moves", "pip install 'sdkit-frames[flow]'"),
    ("retime", "filters:Retime", "another number of frames per second, the same duration", ""),
    ("color-match", "filters:ColorMatch", "the colours of the first frame for all (LAB, HSV or RGB histograms)", ""),
    ("deflicker", "filters:Deflicker", "brightness that follows a running mean", ""),
    ("resize", "filters:Resize", "another size in pixels", ""),
    ("caption", "filters:Caption", "a line of text: prompt, seed, frame number", ""),
)
SINKS = (
    ("mp4", "video:Mp4", "H.264, plays everywhere", "pip install 'sdkit-frames[video]'"),
    ("webm", "video:Webm", "VP9", "pip install 'sdkit-frames[video]'"),
    ("gif", "gif:Gif", "palette per frame, delays that add up", ""),
    ("webp", "webp:Webp", "animated WebP, lossy or lossless", ""),
    ("apng", "apng:Apng", "animated PNG, lossless", ""),
    ("png", "pngs:Pngs", "a PNG per frame and a JSON file beside them", ""),
)


@hookimpl
def sdkit_components() -> list[Component]:
    """Generators, filters and sinks."""
    return [
        *(Component("frames", n, f"sdkit_frames.{t}", s, (also,)) for n, t, s, also in GENERATORS),
        *(Component("frame-filter", n, f"sdkit_frames.{t}", s, requires=r) for n, t, s, r in FILTERS),
        Component("frame-filter", "ping-pong", "sdkit.frames.clip:PingPong", "there and back again, as a loop"),
        *(Component("frame-sink", n, f"sdkit_frames.{t}", s, requires=r) for n, t, s, r in SINKS),
    ]
