"""Speed claims, measured: each module compares its contenders in one run."""
