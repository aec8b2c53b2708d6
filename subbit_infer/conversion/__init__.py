"""Models in, models out: sub-bit weights detected, and layers put in."""
