"""How to get there: the published algorithms on one protocol. Knows constraints only by their methods."""

from jaxcomp.solvers._admm import ADMM as ADMM
from jaxcomp.solvers._admm import ADMMState as ADMMState
from jaxcomp.solvers._solver import Round as Round
from jaxcomp.solvers._solver import Solver as Solver
from jaxcomp.solvers._solver import as_transformation as as_transformation
from jaxcomp.solvers._solver import confine as confine
from jaxcomp.solvers._solver import retract as retract
