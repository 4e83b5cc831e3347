"""A small text-to-image model inside a package: emoji-like pictures, 128 x 128 pixels, on two cores and offline."""
