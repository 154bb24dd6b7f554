"""Names and objects to a `Defence`: found, built, loaded, calibrated, made fast. Nothing here attacks."""
