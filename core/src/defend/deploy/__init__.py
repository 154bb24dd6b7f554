"""A defence outside of Python: a file to run elsewhere, and labels for a folder of images."""
