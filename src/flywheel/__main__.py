"""`python -m flywheel`, and what torchrun starts."""

from flywheel.cli import main

main()
