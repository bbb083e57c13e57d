"""Many solves at once: which to run, how few programs run them, where results are kept, and what came of it."""

from jaxcomp.sweeps._configs import Configs as Configs
from jaxcomp.sweeps._configs import choice as choice
from jaxcomp.sweeps._configs import config_key as config_key
from jaxcomp.sweeps._configs import grid as grid
from jaxcomp.sweeps._configs import log_uniform as log_uniform
from jaxcomp.sweeps._configs import random_search as random_search
from jaxcomp.sweeps._configs import uniform as uniform
from jaxcomp.sweeps._configs import zip_ as zip_
from jaxcomp.sweeps._halving import Halving as Halving
from jaxcomp.sweeps._halving import halving as halving
from jaxcomp.sweeps._optuna import ask_tell as ask_tell
from jaxcomp.sweeps._pareto import hypervolume as hypervolume
from jaxcomp.sweeps._pareto import pareto_front as pareto_front
from jaxcomp.sweeps._plot import plot_pareto as plot_pareto
from jaxcomp.sweeps._result import Outcome as Outcome
from jaxcomp.sweeps._result import Sweep as Sweep
from jaxcomp.sweeps._store import Store as Store
from jaxcomp.sweeps._sweep import sweep as sweep
