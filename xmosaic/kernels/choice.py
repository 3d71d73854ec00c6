"""Which implementation takes a call: asked by name or, by default, the fastest that can."""

from __future__ import annotations

import functools
import os

import torch

from ..errors import ArgumentError, explain

IMPLEMENTATIONS = ("triton", "reference")

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def choose(
    impl: str | None,
    *tensors: torch.Tensor,
    alike: bool = True,
    fixed: torch.Tensor | None = None,
    products: bool = False,
) -> str:
    """Name of the implementation for these tensors.

    Parameters
    ----------
    impl : {None, "triton", "reference"}
    *tensors : Tensor
        What the operation reads.
    alike : bool
        Whether Triton needs them all in one dtype.
    fixed : Tensor, optional
        One more, for which Triton has no gradient.
    products : bool
        Whether the operation is made of matrix products. In float32 Triton's run on the slow units, and are taken only
        when asked for by name.

    Returns
    -------
    {"triton", "reference"}

    Raises
    ------
    ArgumentError
        For an unknown name, or "triton" where it can't run.
    """
    if impl is not None and impl not in IMPLEMENTATIONS:
        raise ArgumentError(
            explain(f"impl={impl!r} does not exist", expected=" or ".join(map(repr, (None, *IMPLEMENTATIONS))))
        )
    slow = tensors[0].device.type != "cuda" or (products and tensors[0].dtype == torch.float32)
    if impl == "reference" or (impl is None and slow):
        return "reference"
    problem = _problem(tensors, alike, fixed)
    if problem is None:
        return "triton"
    if impl == "triton":
        raise ArgumentError(explain("impl='triton' can't take these inputs", got=problem[0], expected=problem[1]))
    return "reference"


def choose_float8(impl: str | None, *tensors: torch.Tensor) -> str:
    """As `choose`, for rows in 8 bits: nothing else takes their place unless "reference" asks for an emulation.

    Raises
    ------
    ArgumentError
        Where gradients are wanted, or the device has no products in 8 bits.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        raise ArgumentError(
            explain("float8 has no gradient here", do="Train in bfloat16, or forecast inside torch.inference_mode()")
        )
    if impl != "reference" and not _interpreted():
        require_float8(tensors[0].device)
    return choose(impl or "triton", *tensors, alike=False)


def require_float8(device: torch.device) -> None:
    """Raise `ArgumentError` where a device has no matrix products in 8 bits.

    Parameters
    ----------
    device : torch.device
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if capability is None or capability < (8, 9) or torch.version.hip is not None:
        got = f"device {device}" + (f" of capability {capability[0]}.{capability[1]}" if capability else "")
        raise ArgumentError(
            explain(
                "float8 can't be used",
                got=got,
                expected="an NVIDIA GPU of compute capability 8.9 or newer",
                do="Take bfloat16",
            )
        )


def _problem(tensors: tuple[torch.Tensor, ...], alike: bool, fixed: torch.Tensor | None) -> tuple[str, str] | None:
    """What Triton can't take, and what it could."""
    missing = _missing()
    if missing:
        return missing, "Triton on an NVIDIA GPU of compute capability 8.0 or newer"
    devices = {x.device for x in (*tensors, *(() if fixed is None else (fixed,)))}
    kind = tensors[0].device.type
    if len(devices) > 1 or not (kind == "cuda" or (kind == "cpu" and _interpreted())):
        return f"tensors on {', '.join(sorted(map(str, devices)))}", "tensors on one GPU"
    dtypes = {x.dtype for x in tensors}
    if not dtypes <= set(_DTYPES) or (alike and len(dtypes) > 1):
        return ", ".join(sorted(map(str, dtypes))), "float16, bfloat16 or float32" + (", all alike" if alike else "")
    if fixed is not None and fixed.requires_grad and torch.is_grad_enabled():
        return "directions that need a gradient", "directions without one"
    return None


@functools.lru_cache(maxsize=1)
def _missing() -> str | None:
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"no Triton ({error})"
    if _interpreted():
        return None
    if not torch.cuda.is_available():
        return "no GPU"
    capability = torch.cuda.get_device_capability()
    return None if torch.version.hip is None and capability >= (8, 0) else f"a GPU of capability {capability}"


def _interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"
