"""Samplers and spacings for sdkit, each written once over (alpha, sigma)."""
