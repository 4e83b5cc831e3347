"""The conformance kit: rules for schedulers, spacings, schedules, parametrizations, decoders, noise, adapters, plugins.

Needs the extra ``sdkit-core[testing]`` (hypothesis; pytest for the test classes).
"""

from sdkit.testing import adapters, conformance, frames, others, problems, schedulers
from sdkit.testing.adapters import *  # noqa: F403  # what a room of rules exports is listed once, there
from sdkit.testing.conformance import *  # noqa: F403
from sdkit.testing.frames import *  # noqa: F403
from sdkit.testing.others import *  # noqa: F403
from sdkit.testing.problems import *  # noqa: F403
from sdkit.testing.rules import NonConformance, Outcome, Rule, Skip, apply, catalogue, run
from sdkit.testing.schedulers import *  # noqa: F403
from sdkit.testing.strategies import Case, cases, grids, schedules

__all__ = ["Case", "NonConformance", "Outcome", "Rule", "Skip", "apply", "cases", "catalogue"]
__all__ += ["grids", "run", "schedules"]
__all__ += adapters.__all__
__all__ += conformance.__all__
__all__ += frames.__all__
__all__ += others.__all__
__all__ += problems.__all__
__all__ += schedulers.__all__
