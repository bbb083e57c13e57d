"""Projection as one program: called plainly, every operation on every shape would be a program of its own."""

import jax

import jaxcomp as jc

project = jax.jit(jc.project)
