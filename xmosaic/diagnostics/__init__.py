"""Is the forecast good, sharp, calibrated and physical? Labelled in, labelled out, lazy, without torch."""
