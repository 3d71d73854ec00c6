"""The HEALPix mesh: geometry, CF metadata, and labelled, lazy regridding from and to latitude/longitude.

Cells are in nested order throughout.
"""

from .mesh import Grid as Grid
from .mesh import HealpixMesh as HealpixMesh
from .mesh import cell_centres as cell_centres
from .mesh import cell_vectors as cell_vectors
from .mesh import cells_at as cells_at
from .mesh import check_nside as check_nside
from .mesh import children as children
from .mesh import parents as parents
from .metadata import find_mesh as find_mesh
from .metadata import locate_mesh as locate_mesh
from .metadata import mesh_coordinates as mesh_coordinates
from .metadata import no_mesh as no_mesh
from .operator import Method as Method
from .operator import RegridWeights as RegridWeights
from .regrid import to_healpix as to_healpix
from .regrid import to_latlon as to_latlon
from .weights import regrid_weights as regrid_weights
