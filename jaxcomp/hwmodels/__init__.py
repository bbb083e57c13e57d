"""What a model costs in silicon: knows workloads and footprints, never solvers."""

from jaxcomp.hwmodels._allocate import Allocation as Allocation
from jaxcomp.hwmodels._allocate import allocate as allocate
from jaxcomp.hwmodels._bit_fusion import BitFusion as BitFusion
from jaxcomp.hwmodels._bit_serial import BitSerial as BitSerial
from jaxcomp.hwmodels._choices import choices as choices
from jaxcomp.hwmodels._device import Cost as Cost
from jaxcomp.hwmodels._device import Device as Device
from jaxcomp.hwmodels._device import ProductCost as ProductCost
from jaxcomp.hwmodels._level import Level as Level
from jaxcomp.hwmodels._mapping import Mapping as Mapping
from jaxcomp.hwmodels._mode import Exact as Exact
from jaxcomp.hwmodels._mode import Mode as Mode
from jaxcomp.hwmodels._mode import Smooth as Smooth
from jaxcomp.hwmodels._row_stationary import RowStationary as RowStationary
from jaxcomp.hwmodels._spatial import Spatial as Spatial
from jaxcomp.hwmodels._stored import Stored as Stored
from jaxcomp.hwmodels._stored import stored as stored
from jaxcomp.hwmodels._systolic import Systolic as Systolic
