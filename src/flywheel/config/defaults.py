"""Defaults that the command line shows, apart from the settings, whose classes take a third of a second to build."""

LEAK = 0.8
"""Likeness from which a training episode gives a held-out task away."""
