"""A forecast as one HTML page: a globe to turn, members and leads to step through; opens anywhere, offline."""

from .explorer import Explorer as Explorer
from .explorer import explore as explore
