"""Model families for sdkit: Stable Diffusion 1.x, 2.x, XL, 3 and 3.5, FLUX.1, from folders and single files."""
