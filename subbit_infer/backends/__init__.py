"""The only importers of compiled code: weights prepared, calls planned and run, by device."""
