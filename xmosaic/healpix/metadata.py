"""The mesh described on a Dataset: written after CF 1.13, found after CF or xdggs, in either order of cells."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ..errors import ArgumentError, DatasetError, explain
from .mesh import HealpixMesh, check_nside

_MESH_DIMS = ("cell", "cells", "cell_ids", "values")


class _Found(NamedTuple):
    """The mesh of an object: its dimension, and the position of each nested cell along it (None: in order)."""

    mesh: HealpixMesh
    dim: Hashable
    positions: np.ndarray | None


def mesh_coordinates(nside: int) -> dict[str, xr.Variable]:
    """Coordinates `cell` and `crs` that describe the mesh after CF 1.13, appendix F.

    Every data variable on the mesh needs the attribute grid_mapping="crs" besides.

    Parameters
    ----------
    nside : int

    Returns
    -------
    dict of str to Variable
    """
    mesh = HealpixMesh(nside)
    # xdggs refuses every further attribute on crs
    crs = {
        "grid_mapping_name": "healpix",
        "refinement_level": mesh.refinement_level,
        "indexing_scheme": "nested",
    }
    index = {"standard_name": "healpix_index", "units": "1"}
    return {
        "cell": xr.Variable(("cell",), np.arange(mesh.size), index),
        "crs": xr.Variable((), np.int8(0), crs),
    }


def find_mesh(
    obj: xr.Dataset | xr.DataArray, *, nside: int | None = None, indexing_scheme: str | None = None
) -> HealpixMesh | None:
    """The mesh that an object is on, None if nothing on it says so.

    Understands CF 1.13 (a variable with grid_mapping_name="healpix") and xdggs (a coordinate with
    grid_name="healpix").

    Parameters
    ----------
    obj : Dataset or DataArray
    nside, indexing_scheme : optional
        For an object without metadata, see `to_latlon`.

    Returns
    -------
    HealpixMesh or None
    """
    found = locate_mesh(obj, nside, indexing_scheme)
    return found.mesh if found else None


def locate_mesh(
    obj: xr.Dataset | xr.DataArray, nside: int | None = None, indexing_scheme: str | None = None
) -> _Found | None:
    """As `find_mesh`, with the mesh's dimension and the position of each nested cell along it."""
    described = _describing_attributes(obj)
    if described is None and nside is None and indexing_scheme is None:
        return None
    attributes, dim, index = described or _bare_mesh(obj, nside, indexing_scheme)
    mesh, scheme = _described_mesh(attributes), _described_scheme(attributes)
    if nside not in (None, mesh.nside) or indexing_scheme not in (None, scheme):
        raise ArgumentError(
            explain(
                "The mesh's own description says otherwise",
                got=f"nside={nside!r}, indexing_scheme={indexing_scheme!r}",
                expected=f"nside={mesh.nside}, indexing_scheme={scheme!r}",
                do="Leave both out, or correct the description.",
            )
        )
    if obj.sizes[dim] != mesh.size:
        raise DatasetError(
            explain(
                f"Dimension {dim!r} doesn't hold the whole mesh",
                got=f"{obj.sizes[dim]} cells",
                expected=f"{mesh.size} at nside {mesh.nside}",
                do="Take all cells (NaN where there is no value); regional meshes are not regridded.",
            )
        )
    ids = np.arange(mesh.size) if index is None else np.asarray(obj[index].values)
    return _Found(mesh, dim, _nested_positions(ids, mesh, scheme))


def _describing_attributes(
    obj: xr.Dataset | xr.DataArray,
) -> tuple[dict[str, Any], Hashable, Hashable | None] | None:
    """Attributes that describe the mesh, its dimension, and the name of the coordinate with cell numbers."""
    variables = obj.variables if isinstance(obj, xr.Dataset) else {n: c.variable for n, c in obj.coords.items()}
    for name, index in obj.xindexes.items():
        # what xdggs.decode returns has its description on the index alone
        info = getattr(index, "grid_info", None)
        if info is not None and info.to_dict().get("grid_name") == "healpix":
            return info.to_dict(), obj[name].dims[0], name
    for name, variable in variables.items():
        if str(variable.attrs.get("grid_name")) == "healpix" and variable.ndim == 1:
            return dict(variable.attrs), variable.dims[0], name
    for variable in variables.values():
        if str(variable.attrs.get("grid_mapping_name")) != "healpix":
            continue
        for name, cells in variables.items():
            if str(cells.attrs.get("standard_name")) == "healpix_index" and cells.ndim == 1:
                return dict(variable.attrs), cells.dims[0], name
        dim = _usual_dim(obj)
        return dict(variable.attrs), dim, dim if dim in variables else None
    return None


def _usual_dim(obj: xr.Dataset | xr.DataArray) -> Hashable:
    dims = [dim for dim in obj.sizes if dim in _MESH_DIMS]
    if len(dims) == 1:
        return dims[0]
    raise DatasetError(
        explain(
            "The dimension of the HEALPix cells can't be told",
            got=f"dimensions {tuple(obj.sizes)}",
            expected="a coordinate with standard_name='healpix_index', or one dimension "
            f"named {' or '.join(map(repr, _MESH_DIMS))}",
            do="Rename the dimension to 'cell'.",
        )
    )


def _bare_mesh(
    obj: xr.Dataset | xr.DataArray, nside: int | None, indexing_scheme: str | None
) -> tuple[dict[str, Any], Hashable, Hashable | None]:
    if nside is None or indexing_scheme is None:
        raise ArgumentError(
            explain(
                "A mesh without metadata needs both nside and indexing_scheme",
                got=f"nside={nside!r}, indexing_scheme={indexing_scheme!r}",
                expected="e.g. nside=64, indexing_scheme='nested'",
            )
        )
    dim = _usual_dim(obj)
    attributes = {"nside": check_nside(nside), "indexing_scheme": indexing_scheme}
    return attributes, dim, dim if dim in obj.coords else None


def _described_mesh(attributes: dict[str, Any]) -> HealpixMesh:
    for key in ("nside", "healpix_nside"):
        if key in attributes:
            return HealpixMesh(int(attributes[key]))
    for key in ("refinement_level", "level"):
        level = attributes.get(key)
        if isinstance(level, int | np.integer) and 0 <= level <= 29:
            return HealpixMesh(2 ** int(level))
    raise DatasetError(
        explain(
            "The mesh's description has no usable resolution",
            got=f"attributes {attributes}",
            expected="refinement_level from 0 to 29",
            do="Add refinement_level = log2(nside).",
        )
    )


def _described_scheme(attributes: dict[str, Any]) -> str:
    scheme = attributes.get("indexing_scheme", attributes.get("healpix_order", "missing"))
    known = {"nested": "nested", "nest": "nested", "ring": "ring"}
    if scheme in known:
        return known[scheme]
    raise DatasetError(
        explain(
            "The order of the cells can't be used",
            got=f"indexing_scheme {scheme!r}",
            expected="'nested' or 'ring'",
            do="Set indexing_scheme, or convert the cells with xdggs.",
        )
    )


def _nested_positions(ids: np.ndarray, mesh: HealpixMesh, scheme: str) -> np.ndarray | None:
    import healpy

    cells = np.arange(mesh.size)
    if ids.dtype.kind not in "iu" or not np.array_equal(np.sort(ids), cells):
        raise DatasetError(
            explain(
                "The coordinate of the cells doesn't number the whole mesh",
                got=f"dtype {ids.dtype}, {len(np.unique(ids))} different numbers",
                expected=f"each of 0 … {mesh.size - 1} once",
                do="Write the cell numbers there, or drop the coordinate if the cells are in order.",
            )
        )
    wanted = cells if scheme == "nested" else healpy.nest2ring(mesh.nside, cells)
    positions = np.argsort(ids)[wanted]
    return None if np.array_equal(positions, cells) else positions


def no_mesh(data: xr.Dataset) -> str:
    """What to say of an object that is on neither kind of grid."""
    bare = {dim: size for dim, size in data.sizes.items() if dim in _MESH_DIMS}
    if bare:
        return explain(
            "The cells have no description",
            got=f"dimension {', '.join(f'{dim!r} of {size}' for dim, size in bare.items())}, "
            "without grid_mapping_name='healpix'",
            expected="nside and the order of the cells",
            do="Pass nside=… and indexing_scheme='nested' or 'ring', or assign mesh_coordinates(nside).",
        )
    return explain(
        "No HEALPix mesh is on this object",
        got=f"dimensions {tuple(data.sizes)}",
        expected="a variable with grid_mapping_name='healpix', or a coordinate with grid_name='healpix'",
        do="Use to_healpix for data on latitude/longitude.",
    )
