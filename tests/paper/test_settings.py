"""The settings of the published design: what they refuse, and what they say of themselves."""

from __future__ import annotations

import dataclasses
import json

import pytest

from itk_nir.engine.coordinate_networks import FieldConfig
from itk_nir.errors import OptionError
from itk_nir.options import options_in, rebuilt
from itk_nir.paper.registration import Settings
from itk_nir.paper.samplers import SamplerConfig
from itk_nir.paper.settings import PaperPhase, PaperSettings, preset

JITTER = SamplerConfig("downsize", offset="jitter")
SCATTERED = SamplerConfig("random")


@pytest.mark.parametrize("owner", [PaperSettings, PaperPhase, SamplerConfig])
def test_every_field_is_an_option_that_says_what_it_means(owner: type) -> None:
    assert [f.name for f in dataclasses.fields(owner)] == list(options_in(owner))
    assert all(what.help for what in options_in(owner).values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flow": "squaring"}, "flow must be one of 'displacement', 'euler', 'rk4', got 'squaring'"),
        ({"metric": "mind"}, "metric must be one of 'lncc', 'ncc', 'mse', 'nmi', 'mi'"),
        ({"fixed_interpolation": "cubic"}, "fixed_interpolation must be one of 'linear', 'nearest', 'bspline'"),
        ({"moving_interpolation": "nearest"}, "moving_interpolation must be one of 'linear', 'bspline'"),
        ({"phases": ()}, "at least one phase"),
        ({"ode_steps": 0}, "ode_steps must be at least 1"),
        ({"probes": 0}, "probes must be at least 1"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"bending_length": 0.0}, "bending_length must be above 0"),
        ({"jacobian_weight": -1.0}, "jacobian_weight must be at least 0"),
        ({"integration_time": float("nan")}, "integration_time must be a finite number"),
        ({"phases": (PaperPhase(sampler=SCATTERED),)}, "lncc' needs neighbours"),
        ({"phases": (PaperPhase(sampler=JITTER),), "bending_weight": 1.0}, "bending_weight needs regular blocks"),
    ],
)
def test_what_the_settings_refuse(changes: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PaperSettings(**changes)


@pytest.mark.parametrize("name", ["iterations", "radius", "learning_rate", "learning_rate_end"])
def test_what_a_phase_refuses(name: str) -> None:
    with pytest.raises(OptionError, match=f"^{name} must be"):
        PaperPhase(**{name: 0})


def test_scattered_points_go_with_other_metrics() -> None:
    assert PaperSettings(phases=(PaperPhase(sampler=SCATTERED),), metric="ncc").metric == "ncc"


def test_the_rate_falls_linearly() -> None:
    phase = PaperPhase(iterations=5, learning_rate=1e-2, learning_rate_end=2e-3)
    assert [phase.rate(k) for k in range(5)] == pytest.approx([1e-2, 8e-3, 6e-3, 4e-3, 2e-3])
    assert PaperPhase(iterations=1).rate(0) == PaperPhase().learning_rate


def test_the_preset() -> None:
    chosen = preset()
    assert isinstance(chosen, Settings)
    assert chosen.kind == "paper"
    assert [(p.sampler.name, p.iterations, p.radius) for p in chosen.phases] == [
        ("downsize", 150, 2),
        ("patches", 100, 3),
    ]
    assert [(p.learning_rate, p.learning_rate_end) for p in chosen.phases] == [(3e-3, 3e-4), (2e-3, 2e-4)]
    assert [p.field.scale for p in chosen.phases] == [1.5, 2.5]
    assert (chosen.flow, chosen.ode_steps, chosen.integration_time, chosen.metric) == ("rk4", 1, 0.2, "lncc")


def test_settings_come_back_from_json() -> None:
    chosen = dataclasses.replace(
        preset(), phases=(PaperPhase(FieldConfig(kind="grid", cells=(4, 8), bound=0.5)), *preset().phases)
    )
    table = json.loads(json.dumps(dataclasses.asdict(chosen)))
    assert rebuilt(PaperSettings, table) == chosen
    table["phases"][1]["momentum"] = 0.9
    with pytest.raises(ValueError, match="PaperPhase has no momentum"):
        rebuilt(PaperSettings, table)
