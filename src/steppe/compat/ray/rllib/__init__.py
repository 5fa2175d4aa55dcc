"""What RLlib 1.x programs import from ``ray.rllib``."""
