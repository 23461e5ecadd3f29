"""The scheduler in the running system on links of known rate, beside the solver."""
