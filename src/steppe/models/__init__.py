"""Networks and action distributions: a space in, parameters and values out."""
