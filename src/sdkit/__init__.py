"""sdkit: Stable Diffusion from Python.

Importing this package loads neither torch nor numpy: names are resolved when they are first used (PEP 562).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdkit.conditioning import concatenate as concatenate
    from sdkit.denoiser import NetworkDenoiser as NetworkDenoiser
    from sdkit.errors import AmbiguousComponent as AmbiguousComponent
    from sdkit.errors import FileError as FileError
    from sdkit.errors import GridError as GridError
    from sdkit.errors import InvalidRequest as InvalidRequest
    from sdkit.errors import LevelError as LevelError
    from sdkit.errors import ManifestError as ManifestError
    from sdkit.errors import NoiseError as NoiseError
    from sdkit.errors import NonFiniteError as NonFiniteError
    from sdkit.errors import ParameterError as ParameterError
    from sdkit.errors import PluginError as PluginError
    from sdkit.errors import SdkitError as SdkitError
    from sdkit.errors import UnknownComponent as UnknownComponent
    from sdkit.guidance import Conditions as Conditions
    from sdkit.guidance import Guided as Guided
    from sdkit.guidance import Inpainted as Inpainted
    from sdkit.guidance import guided as guided
    from sdkit.levels import Grid as Grid
    from sdkit.levels import Level as Level
    from sdkit.levels import between as between
    from sdkit.levels import check_grid as check_grid
    from sdkit.loading import load as load
    from sdkit.loading import pipeline as pipeline
    from sdkit.loading import rerun as rerun
    from sdkit.loop import solve as solve
    from sdkit.manifest import Manifest as Manifest
    from sdkit.manifest import read_manifest as read_manifest
    from sdkit.model import LatentSpec as LatentSpec
    from sdkit.model import Licence as Licence
    from sdkit.model import Model as Model
    from sdkit.model import ModelSpec as ModelSpec
    from sdkit.noise import AddressedNoise as AddressedNoise
    from sdkit.noise import NoiseSource as NoiseSource
    from sdkit.noise import NoNoise as NoNoise
    from sdkit.noise import TorchNoise as TorchNoise
    from sdkit.parametrizations import Edm as Edm
    from sdkit.parametrizations import Epsilon as Epsilon
    from sdkit.parametrizations import Flow as Flow
    from sdkit.parametrizations import Sample as Sample
    from sdkit.parametrizations import Velocity as Velocity
    from sdkit.pipelines import Pipeline as Pipeline
    from sdkit.pipelines import Plan as Plan
    from sdkit.pipelines import Result as Result
    from sdkit.pipelines import ResultEvent as ResultEvent
    from sdkit.pipelines import StepEvent as StepEvent
    from sdkit.plugins import Component as Component
    from sdkit.plugins import Registry as Registry
    from sdkit.plugins import hookimpl as hookimpl
    from sdkit.plugins import registry as registry
    from sdkit.protocols import Autoencoder as Autoencoder
    from sdkit.protocols import Decoder as Decoder
    from sdkit.protocols import Denoiser as Denoiser
    from sdkit.protocols import Encoder as Encoder
    from sdkit.protocols import Modifier as Modifier
    from sdkit.protocols import Network as Network
    from sdkit.protocols import Noise as Noise
    from sdkit.protocols import NoiseSchedule as NoiseSchedule
    from sdkit.protocols import Parametrization as Parametrization
    from sdkit.protocols import Parts as Parts
    from sdkit.protocols import Scaling as Scaling
    from sdkit.protocols import Scheduler as Scheduler
    from sdkit.protocols import Spacing as Spacing
    from sdkit.protocols import Step as Step
    from sdkit.protocols import Traits as Traits
    from sdkit.request import Picture as Picture
    from sdkit.request import Request as Request
    from sdkit.schedulers import Ddim as Ddim
    from sdkit.schedulers import DpmPP2M as DpmPP2M
    from sdkit.schedulers import Euler as Euler
    from sdkit.schedulers import Heun as Heun
    from sdkit.schedules import DiscreteSchedule as DiscreteSchedule
    from sdkit.schedules import EdmSchedule as EdmSchedule
    from sdkit.schedules import RectifiedFlow as RectifiedFlow
    from sdkit.schedules import cosine as cosine
    from sdkit.schedules import linear as linear
    from sdkit.schedules import scaled_linear as scaled_linear
    from sdkit.sheet import contact_sheet as contact_sheet
    from sdkit.spacings import Karras as Karras
    from sdkit.spacings import Trailing as Trailing
    from sdkit.spacings import Uniform as Uniform
    from sdkit.spacings import UniformLogSnr as UniformLogSnr

__version__ = "0.1.0"

_MODULES = {
    "conditioning": "concatenate",
    "denoiser": "NetworkDenoiser",
    "errors": (
        "AmbiguousComponent FileError GridError InvalidRequest LevelError ManifestError NoiseError NonFiniteError "
        "ParameterError PluginError SdkitError UnknownComponent"
    ),
    "guidance": "Conditions Guided Inpainted guided",
    "levels": "Grid Level between check_grid",
    "loading": "load pipeline rerun",
    "manifest": "Manifest read_manifest",
    "model": "LatentSpec Licence Model ModelSpec",
    "noise": "AddressedNoise NoNoise NoiseSource TorchNoise",
    "parametrizations": "Edm Epsilon Flow Sample Velocity",
    "pipelines": "Pipeline Plan Result ResultEvent StepEvent",
    "plugins": "Component Registry hookimpl registry",
    "protocols": (
        "Autoencoder Decoder Denoiser Encoder Modifier Network Noise NoiseSchedule Parametrization Parts Scaling "
        "Scheduler Spacing Step Traits"
    ),
    "request": "Picture Request",
    "schedulers": "Ddim DpmPP2M Euler Heun",
    "schedules": "DiscreteSchedule EdmSchedule RectifiedFlow cosine linear scaled_linear",
    "loop": "solve",
    "sheet": "contact_sheet",
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
