"""The line between the host and what others wrote: what crosses it is checked once, and nobody is left changed."""
