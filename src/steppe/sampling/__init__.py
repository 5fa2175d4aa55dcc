"""From rows to experience: the sampler loop, lanes, and what is measured on the way."""
