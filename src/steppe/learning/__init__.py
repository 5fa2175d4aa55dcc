"""From experience to weights."""
