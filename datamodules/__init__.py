"""Images and signals: catalog, benchmark sets, training patches."""
