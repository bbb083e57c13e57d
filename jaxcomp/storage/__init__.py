"""What is kept on disk: parameters in the bits that their footprints promise, and back; independent of how they run."""

from jaxcomp.storage._load import load as load
from jaxcomp.storage._save import save as save
from jaxcomp.storage._saved import Saved as Saved
from jaxcomp.storage._saved import SavedLeaf as SavedLeaf
