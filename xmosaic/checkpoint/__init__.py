"""Models as files: one self-describing format of our own, the published files, and the hub they come from.

Nothing that a file contains is ever executed: our own format is safetensors, the published ``.pt`` files are read with
torch's restricted unpickler, and every name, shape, number and digest is checked before a network is built from it.
"""

from ..model import PUBLISHED as PUBLISHED
from .convert import convert_published as convert_published
from .format import read_model as read_model
from .hub import REPOSITORY as REPOSITORY
from .hub import offline as offline
from .loading import load_model as load_model
from .model import Model as Model
from .published import load_published_weights as load_published_weights
from .record import cache_folder as cache_folder
from .variants import PAPER as PAPER
from .variants import PUBLISHED_GRID as PUBLISHED_GRID
from .variants import LicenseNotice as LicenseNotice
