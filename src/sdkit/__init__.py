"""sdkit: Stable Diffusion from Python.

Importing this package loads neither torch nor numpy: names are resolved when they are first used (PEP 562). Type
checkers read `__init__.pyi`, so that a misspelt name is an error for them and not an unknown attribute.
"""

from __future__ import annotations

__version__ = "0.1.0"

_MODULES = {
    "conditioning": "concatenate map_tensors take",
    "denoiser": "NetworkDenoiser",
    "errors": (
        "AmbiguousComponent ContractError FileError GridError InvalidRequest LevelError ManifestError NoiseError "
        "NonFiniteError ParameterError PluginError SdkitError UnknownComponent"
    ),
    "frames.clip": "Clip ClipManifest PingPong animate",
    "frames.curves": "Curve",
    "frames.frame": (
        "Burst Capability Frame FrameFilter FrameGenerator FrameInfo FrameJob FramePlan FrameSink ImageSource Shot "
        "SinkWriter"
    ),
    "frames.source": "image_source lerp slerp",
    "frames.time": "Loop Timeline check_frame_rule",
    "frames.tracks": "Keyframe Mix PromptTrack between_keys",
    "guidance": "Conditions Guided Inpainted guided",
    "levels": "Grid Level between check_grid",
    "loading": "load pipeline rerun",
    "manifest": "Manifest read_manifest",
    "model": "LatentSpec Licence Model ModelSpec Term",
    "interop.torchnoise": "TorchNoise",
    "noise": "AddressedNoise NoNoise NoiseMaker NoiseSource",
    "parametrizations": "Edm Epsilon Flow Sample Velocity",
    "pipelines": "Pipeline Plan Result ResultEvent StepEvent",
    "plugins": "Component Registry hookimpl registry",
    "protocols": (
        "Autoencoder Decoder Denoise Denoiser Encoder Modifier Network Noise NoiseSchedule Parametrization Parts "
        "Scaling Scheduler Spacing Step Traits"
    ),
    "request": "Picture Request",
    "schedulers": "Ddim DpmPP2M Euler Heun",
    "schedules": "DiscreteSchedule EdmSchedule RectifiedFlow cosine linear scaled_linear",
    "loop": "solve",
    "sheet": "contact_sheet",
    "wire": "from_json to_json",
    "spacings": "Karras Trailing Uniform UniformLogSnr",
}
_ORIGIN = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = [*sorted(_ORIGIN), "__version__"]  # noqa: PLE0604 - built from the table above


def __getattr__(name: str) -> object:
    from importlib import import_module

    module = _ORIGIN.get(name)
    if module is None:
        raise AttributeError(f"module 'sdkit' has no attribute {name!r}")
    value: object = getattr(import_module(f"sdkit.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
