"""What a model costs in silicon: knows workloads and footprints, never solvers."""

from jaxcomp.hwmodels._device import Cost as Cost
from jaxcomp.hwmodels._device import Device as Device
from jaxcomp.hwmodels._device import ProductCost as ProductCost
from jaxcomp.hwmodels._mode import Exact as Exact
from jaxcomp.hwmodels._mode import Mode as Mode
from jaxcomp.hwmodels._mode import Smooth as Smooth
from jaxcomp.hwmodels._stored import Stored as Stored
from jaxcomp.hwmodels._stored import stored as stored
