"""A fleet's hardware and days: what devices can do, when they are online, what goes wrong, and how long rounds take.

Nothing here trains. `assign` draws the devices of a `FleetConfig`, `play_round` and `ArrivalQueue` keep the clock, and
`SimulatedFleet` puts all of it between a server and whatever plays the devices.
"""

from simulation.fleet.availability import Always, Daily, Habits, Trace, draw_daily
from simulation.fleet.clock import ArrivalQueue, RoundOutcome, RoundRules, play_round, wait_until_online
from simulation.fleet.config import DeviceSpec, FleetConfig, assign, draw_device
from simulation.fleet.faults import Fault, FaultConfig, draw_fault
from simulation.fleet.journal import FleetJournal, FleetRecord, read_journal
from simulation.fleet.presence import Presence
from simulation.fleet.profile import DeviceProfile, find_profile, read_profiles, training_flops
from simulation.fleet.recorded import Recorded, read_recorded
from simulation.fleet.spending import FleetSummary, RoundSpending, spending, summarize
from simulation.fleet.tasks import Task, TaskCost, TaskRun, Usage, run_task, total_usage
from simulation.fleet.transport import SimulatedFleet
from simulation.fleet.work import LocalWork

__all__ = [
    "Always",
    "ArrivalQueue",
    "Daily",
    "DeviceProfile",
    "DeviceSpec",
    "Fault",
    "FaultConfig",
    "FleetConfig",
    "FleetJournal",
    "FleetRecord",
    "FleetSummary",
    "Habits",
    "LocalWork",
    "Presence",
    "Recorded",
    "RoundOutcome",
    "RoundRules",
    "RoundSpending",
    "SimulatedFleet",
    "Task",
    "TaskCost",
    "TaskRun",
    "Trace",
    "Usage",
    "assign",
    "draw_daily",
    "draw_device",
    "draw_fault",
    "find_profile",
    "play_round",
    "read_journal",
    "read_profiles",
    "read_recorded",
    "run_task",
    "spending",
    "summarize",
    "total_usage",
    "training_flops",
    "wait_until_online",
]
