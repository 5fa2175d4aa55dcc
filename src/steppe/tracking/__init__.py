"""What a run leaves behind: its folder (:mod:`run`), TensorBoard events, and the display on screen."""
