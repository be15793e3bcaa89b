"""The campaign of kills, small: that it runs, kills what it says, and that nothing is lost."""

import io

import pytest
from rich.console import Console

from pipeline.guard.kill_points import POINTS
from tests.reliability import verdict
from tests.reliability.campaign import CampaignSettings, campaign
from tests.reliability.verdict import Trial, show


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("storage_faults", [0.0, 0.03])
def test_nothing_is_lost_whoever_dies(tmp_path, storage_faults):
    """Each way to disturb a run once: 3 minutes on two free CPUs, much more on busy ones."""
    settings = CampaignSettings(images=60, seed=3, storage_faults=storage_faults)
    with campaign(settings, tmp_path) as running:
        trials = [running.run_trial(number) for number in (0, 1, 3)]
    for trial in trials:
        assert trial.complaints == []
        assert (trial.lost, trial.duplicated, trial.differing) == (0, 0, 0)
    in_order, at_random, frozen = trials
    killed = {name.partition(" at: ")[2] for name in in_order.kills}
    if not storage_faults:  # else a driver may end before it gets there
        assert killed >= set(POINTS)
        assert frozen.kills["driver frozen"] == 1
    assert at_random.kills.total() >= 3


def test_the_table_adds_up_and_a_complaint_fails_it(monkeypatch, capsys):
    monkeypatch.setattr(verdict, "Console", lambda **options: Console(file=io.StringIO(), width=100))
    good, bad = Trial("trial-000"), Trial("trial-001")
    good.kills.update({"driver": 3, "model actor": 2})
    bad.kills.update({"driver": 1})
    assert show([good], 60.0, {"images": 5})
    bad.lost = 2
    bad.complaints.append("2 lost")
    assert not show([good, bad], 60.0, {"images": 5})
    out = capsys.readouterr().out.splitlines()
    assert '"kills": 6' in out[-1] and '"lost": 2' in out[-1] and '"kills_per_minute": 6.0' in out[-1]
    assert "trial-001: 2 lost" in out
