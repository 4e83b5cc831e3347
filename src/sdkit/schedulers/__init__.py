"""The solvers the core ships. More come with plugins; `sdkit.registry` knows them all."""

from sdkit.schedulers.ddim import Ddim
from sdkit.schedulers.dpmpp import DpmPP2M, History
from sdkit.schedulers.euler import Euler
from sdkit.schedulers.heun import Heun

__all__ = ["Ddim", "DpmPP2M", "Euler", "Heun", "History"]
