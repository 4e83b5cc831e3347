"""Every rule of sdkit for schedulers, one test each."""

from sdkit_midpoint.scheduler import Midpoint

from sdkit.testing import SchedulerConformance


class TestMidpoint(SchedulerConformance):
    scheduler = Midpoint()
