"""Experience that is learned from more than once: rings of rows, drawn from evenly or by priority."""
