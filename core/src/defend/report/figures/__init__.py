"""The report's figures: each module makes scenes of one kind, which `svg` draws for the page and `paper` for print."""
