"""The model pair that ships with Multi-SPIN, and the recipe that makes it."""
