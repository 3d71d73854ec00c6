"""Pictures of forecasts; each returns a matplotlib Figure, shows nothing and leaves settings as they were."""

from .calibration import rank_histogram as rank_histogram
from .calibration import reliability as reliability
from .cyclones import tracks as tracks
from .lines import mass as mass
from .lines import skill as skill
from .maps import spread as spread
from .maps import stamps as stamps
from .plumes import plume as plume
from .scorecard import ratio_panels as ratio_panels
from .scorecard import score_panels as score_panels
from .waves import ratio as ratio
from .waves import spectra as spectra
