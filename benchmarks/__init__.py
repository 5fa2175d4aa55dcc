"""Speed and memory against fixed bars and against peers, ours and theirs in one run."""
