"""One module for each source of energy readings; `sdk.energy.registry` knows them by name."""
