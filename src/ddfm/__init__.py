"""DDFM: fuse registered images of several sensors by posterior sampling with a diffusion prior."""

__version__ = "0.1.0"
