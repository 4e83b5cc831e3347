"""What sdkit reads at discovery. It imports no torch: the scheduler is imported when it is first asked for."""

from sdkit import Component, hookimpl


@hookimpl
def sdkit_components() -> list[Component]:
    """The components of this plugin."""
    return [
        Component(
            "scheduler",
            "midpoint",
            "sdkit_midpoint.scheduler:MidpointScheduler",
            "the midpoint rule in log_snr; second order",
        )
    ]
