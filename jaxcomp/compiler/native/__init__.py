"""Products by kernels of our own: C++ that the machine's compiler builds once, called by XLA for CPU."""

from jaxcomp.compiler.native._library import missing as missing
from jaxcomp.compiler.native._product import FOLLOWED as FOLLOWED
from jaxcomp.compiler.native._product import PRODUCT as PRODUCT
from jaxcomp.compiler.native._product import Kernel as Kernel
from jaxcomp.compiler.native._product import plain as plain
from jaxcomp.compiler.native._product import product as product
