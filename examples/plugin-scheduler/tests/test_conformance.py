"""Every rule of sdkit for schedulers, one test each."""

from sdkit_midpoint.scheduler import MidpointScheduler

from sdkit.testing import SchedulerConformance


class TestMidpointScheduler(SchedulerConformance):
    scheduler = MidpointScheduler()
