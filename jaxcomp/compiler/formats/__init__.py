"""How a product with a packed matrix is done: one format a file, and what suits a matrix."""

from jaxcomp.compiler.formats._candidates import candidates as candidates
from jaxcomp.compiler.formats._format import Format as Format
