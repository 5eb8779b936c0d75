"""`ddfm demo`."""

import pytest
from cli.helpers import complaint, listing

import ddfm.cli
import ddfm.cli.loading
import ddfm.pipeline
from ddfm.io import images

DEMO = sorted(
    [f"head_{kind}.png" for kind in ("pet_mri", "pet_pet", "spect_mri", "spect_spect", "ct_mri", "ct_ct")]
    + ["night_street_infrared.png", "night_street_visible.png"]
    + [f"{name}_{what}.png" for name in ("night_street", "head_pet") for what in ("fused", "side_by_side")]
)


def test_demo_draws_fuses_and_shows(ddfm_, tmp_path, prior, monkeypatch):
    load = ddfm.cli.loading.pipeline
    monkeypatch.setattr(ddfm.cli.loading, "pipeline", lambda name, device: load(str(prior), device))
    code, out, _ = ddfm_("demo", tmp_path / "new" / "demo", "--device", "cpu")
    assert code == 0 and len(out.splitlines()) == 4
    assert listing(tmp_path / "new" / "demo") == DEMO
    assert images.read(tmp_path / "new" / "demo" / "head_pet_fused.png").pixels.shape == (256, 256, 3)


@pytest.mark.slow
def test_demo_in_full(ddfm_, tmp_path):
    assert ddfm_("demo", tmp_path)[0] == 0
    assert listing(tmp_path) == DEMO


def test_demo_where_a_file_is_in_the_way(ddfm_, tmp_path):
    (tmp_path / "taken").touch()
    assert "taken" in complaint(ddfm_("demo", tmp_path / "taken"))
