"""What runs on a board: slots, the guard that counts starts, the service, the doctor.

`paths`, `state`, `slots`, `guard` and `install` use the standard library alone: they also run from
the guard's own archive, outside every slot, so that a broken slot cannot break the way back.
"""
