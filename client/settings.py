"""The settings of one device, as `device.toml` holds them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from client.adapters import AdapterConfig
from client.annotation import ANNOTATION_POLICIES
from client.bounds import LocalBounds
from client.finetuning import FineTuneConfig
from client.gate import Gate
from client.selection.policies import POLICIES
from client.selection.scoring import EoeReading
from client.synthesis import DEFAULT_TEMPERATURE, SYNTHESIZERS
from florilegium.settings import Settings, one_of

__all__ = ["CoordinationSettings", "DeviceSettings"]


class CoordinationSettings(Settings):
    """On what terms a device takes part in coordinated rounds, if it does.

    Attributes:
        bounds: what it makes of what a server asks.
        max_releases: k, the most that it releases, by its own ledger, whatever a plan allows and private or not; None
            for the plan's number of rounds.
    """

    bounds: LocalBounds = LocalBounds()
    max_releases: int | None = Field(None, ge=0)


class DeviceSettings(Settings):
    """What one device does; the defaults follow the paper where it prints a value.

    Attributes:
        model: "seedling", a Hub name or a local path.
        dtype: the weights' type.
        quantization: None, "int8" or "int4".
        device: where the model is, "auto" on a GPU if there is one.
        bins: dialogues that the buffer holds for training.
        bin_kilobytes: size of one bin: text, embedding and domain tag.
        policy: how a newcomer meets a full buffer; see `client.selection.policies`.
        eoe: which reading of entropy of embedding policies look at; see `client.selection.metrics`.
        holdout_share: share of questions that the gate keeps for itself, never trained on.
        round_every: dialogues between two learning rounds.
        annotation: which buffered dialogues are asked about first; see `client.annotation`.
        annotation_budget: asks per round (per day for "daily"); None takes the policy's own.
        synthesizer: how similar questions are written; see `client.synthesis`.
        synthesis_count: how many for each annotated dialogue.
        synthesis_temperature: of the draws.
        max_new_tokens: longest response, tokens.
        start: a round trains a fresh adapter, so that what the buffer no longer holds leaves no trace, or goes on from
            the present one, beside the shared one that is in use with it.
        adapter: the personal adapter's shape.
        finetuning: how it is trained.
        gate: when a candidate replaces the present adapter.
        coordination: on what terms the device takes part in coordinated rounds.
        seed: everything random derives from it.
    """

    model: str = "seedling"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: Literal["int8", "int4"] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    bins: int = Field(128, ge=1)
    bin_kilobytes: int = Field(22, ge=1)
    policy: Annotated[str, one_of(POLICIES)] = "improved"
    eoe: EoeReading = "energy"
    holdout_share: float = Field(0.1, ge=0.0, le=0.5)
    round_every: int = Field(800, ge=1)
    annotation: Annotated[str, one_of(ANNOTATION_POLICIES)] = "all"
    annotation_budget: int | None = Field(None, ge=0)
    synthesizer: Annotated[str, one_of(SYNTHESIZERS)] = "questions"
    synthesis_count: int = Field(3, ge=0, le=16)
    synthesis_temperature: float = Field(DEFAULT_TEMPERATURE, gt=0.0)
    max_new_tokens: int = Field(64, ge=1)
    start: Literal["fresh", "present"] = "fresh"
    adapter: AdapterConfig = AdapterConfig()
    finetuning: FineTuneConfig = FineTuneConfig()
    gate: Gate = Gate()
    coordination: CoordinationSettings = CoordinationSettings()
    seed: int = 0
