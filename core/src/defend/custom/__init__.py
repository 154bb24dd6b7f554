"""A part that no package offers: a function or class in a user's own file, or an object of her session."""
