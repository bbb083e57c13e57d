"""How a compressed model runs: packed products, measured against the dense ones, in the program that it is."""

from jaxcomp.compiler._compile import compile as compile
from jaxcomp.compiler._compiled import Compiled as Compiled
from jaxcomp.compiler._compiled import CompiledReport as CompiledReport
from jaxcomp.compiler._compiled import ProductReport as ProductReport
from jaxcomp.compiler._onnx import OnnxReport as OnnxReport
from jaxcomp.compiler._onnx import save_onnx as save_onnx
from jaxcomp.compiler._shrink import Removal as Removal
from jaxcomp.compiler._shrink import Removals as Removals
from jaxcomp.compiler._shrink import Shrunk as Shrunk
from jaxcomp.compiler._shrink import shrink as shrink
