"""Work with other libraries' samplers, and let them work with sdkit's.

- `from_kdiffusion`: a sampler function in k-diffusion's convention as a scheduler.
- `from_diffusers`, `grid_of`: a diffusers scheduler object as a scheduler, and the grid it would make itself.
- `for_diffusers`: a sdkit scheduler as an object that a diffusers pipeline takes as its ``scheduler``.

Importing this loads none of those libraries.
"""

from sdkit.interop.borrowed import KINDS, Borrowed, from_diffusers, grid_of
from sdkit.interop.kdiffusion import KDiffusion, from_kdiffusion
from sdkit.interop.lent import Lent, for_diffusers

__all__ = ["KINDS", "Borrowed", "KDiffusion", "Lent", "for_diffusers", "from_diffusers", "from_kdiffusion", "grid_of"]
