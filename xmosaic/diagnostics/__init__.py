"""Is the forecast good, sharp, calibrated and physical? Labelled in, labelled out, lazy, without torch."""

from .calibration import brier as brier
from .calibration import energy_score as energy_score
from .calibration import rank_histogram as rank_histogram
from .calibration import reliability as reliability
from .scores import acc as acc
from .scores import bias as bias
from .scores import crps as crps
from .scores import crps_skill as crps_skill
from .scores import mae as mae
from .scores import rmse as rmse
from .scores import spread as spread
from .scores import spread_skill as spread_skill
from .scores import threshold_weighted_crps as threshold_weighted_crps
from .sums import score_sums as score_sums
from .sums import scores_from as scores_from
