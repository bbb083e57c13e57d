"""Published systems rebuilt with jaxcomp's public names: ``python -m experiments list``."""
