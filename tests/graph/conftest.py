"""Hypothesis without clocks: on a busy machine, a slow example is not a wrong one."""

from hypothesis import HealthCheck, settings

settings.register_profile("no clocks", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clocks")
