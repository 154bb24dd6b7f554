"""Runs the trainings that stages describe: the loop, its checkpoints, and the file with its card."""
