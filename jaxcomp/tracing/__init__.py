"""What a traced program tells: its matrix products with their leaves, and which axes of leaves go together."""

from jaxcomp.tracing._couplings import Coupling as Coupling
from jaxcomp.tracing._couplings import Couplings as Couplings
from jaxcomp.tracing._couplings import Member as Member
from jaxcomp.tracing._couplings import couplings as couplings
from jaxcomp.tracing._trace import trace as trace
