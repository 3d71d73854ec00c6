"""Is the forecast good, sharp, calibrated and physical? Labelled in, labelled out, lazy, without torch.

Options that all scores share:

weights : {"area", None} or DataArray
    Weights of the points that are averaged over: exact cell areas by default, none, or one's own along some of the
    dimensions, such as a mask of a region.
nan_policy : {"propagate", "raise", "omit"}
    What a NaN in the truth or in any member does: make the average NaN (default), raise, or leave the point out.
    Starts and leads without a truth are left out in any case, with a warning that names them.
confidence : float, optional
    Such as 0.95: the result gets a dimension ``bound`` (estimate, lower, upper), the interval of percentiles of a
    bootstrap over starts.
resamples : int
    Of the bootstrap, 1000 by default.
block : int, optional
    Starts are drawn in circular blocks of so many, since neighbouring starts are alike: by default the cube root of
    their number. Take at least as many as starts overlap where they are close.
seed : int
    Of the bootstrap, 0 by default.
"""

from .baselines import climatological_ensemble as climatological_ensemble
from .baselines import climatology as climatology
from .baselines import climatology_at as climatology_at
from .baselines import fit_climatology as fit_climatology
from .baselines import persistence as persistence
from .calibration import brier as brier
from .calibration import energy_score as energy_score
from .calibration import rank_histogram as rank_histogram
from .calibration import reliability as reliability
from .conservation import conservation as conservation
from .conservation import drift as drift
from .conservation import dry_mass as dry_mass
from .conservation import geostrophic_balance as geostrophic_balance
from .conservation import hydrostatic_residual as hydrostatic_residual
from .conservation import mass_drift as mass_drift
from .conservation import total_column_water as total_column_water
from .conservation import total_energy as total_energy
from .scores import acc as acc
from .scores import bias as bias
from .scores import crps as crps
from .scores import crps_skill as crps_skill
from .scores import mae as mae
from .scores import rmse as rmse
from .scores import spread as spread
from .scores import spread_skill as spread_skill
from .scores import threshold_weighted_crps as threshold_weighted_crps
from .spectra import band_rmse as band_rmse
from .spectra import coherence as coherence
from .spectra import effective_resolution as effective_resolution
from .spectra import spectra as spectra
from .spectra import spectral_error as spectral_error
from .spectra import spectral_log_error as spectral_log_error
from .spectra import spectral_ratio as spectral_ratio
from .spectra import spectral_slope as spectral_slope
from .sums import score_sums as score_sums
from .sums import scores_from as scores_from
