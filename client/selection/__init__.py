"""Self-supervised selection: what a small buffer keeps of a stream of dialogues."""

from client.selection.domains import UNKNOWN, dominant_domain
from client.selection.held import Held
from client.selection.lexicons import Lexicons, copy_lexicons, load_lexicons
from client.selection.metrics import dss, eoe_energy, eoe_histogram, idd
from client.selection.policies import POLICIES, make_policy
from client.selection.policy import Action, Decision, Policy, Scored
from client.selection.scoring import EOE_READINGS, Embedded, EoeReading, score

__all__ = [
    "EOE_READINGS",
    "POLICIES",
    "UNKNOWN",
    "Action",
    "Decision",
    "Embedded",
    "EoeReading",
    "Held",
    "Lexicons",
    "Policy",
    "Scored",
    "copy_lexicons",
    "dominant_domain",
    "dss",
    "eoe_energy",
    "eoe_histogram",
    "idd",
    "load_lexicons",
    "make_policy",
    "score",
]
