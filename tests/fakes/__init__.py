"""Hand-written stand-ins: exact models without weights, for tests of everything around a model."""
