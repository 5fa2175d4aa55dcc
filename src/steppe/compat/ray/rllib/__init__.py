"""What RLlib 1.x programs import from ``ray.rllib``."""

from steppe.compat.absent import of_module

__getattr__ = of_module(__name__)
