"""vram-planner: the fastest combination of diffusers memory techniques that fits a VRAM budget."""

__version__ = "0.1.0"
