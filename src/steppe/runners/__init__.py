"""Where sampling runs: in this process."""
