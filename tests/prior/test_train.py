"""Training: that it learns, that it can be stopped anywhere and go on exactly, and what it leaves behind."""

import csv
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from conftest import made_image
from hypothesis import given
from hypothesis import strategies as st

from ddfm.errors import InputError
from ddfm.prior import load_prior
from ddfm.prior.train import TrainingConfig, denoising_psnr, learning_rate, new_unet, noise_levels, train

TINY = TrainingConfig(channels=(8, 16), blocks=(1, 1), steps=6, batch_size=4, crop=16, learning_rate=0.1, decay=0.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two folders of a few made images."""
    root = tmp_path_factory.mktemp("data")
    for folder in ("natural", "thermal"):
        (root / folder).mkdir()
        for k in range(8):
            cv2.imwrite(str(root / folder / f"{k:03d}.png"), made_image(32, 40, seed=k + len(folder)))
    return root


def checkpoint_of(run):
    return torch.load(run / "checkpoint.pt", weights_only=True)


def trained(data, run, config=TINY, **options):
    """The last checkpoint of a run, and the lines it reported."""
    lines = []
    train(data, run, config, report=lines.append, **options)
    return checkpoint_of(run), lines


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The folder of one whole run of `TINY`, for reading only."""
    run = tmp_path_factory.mktemp("whole")
    trained(data, run)
    return run


def refused(data, run, config=TINY):
    with pytest.raises(InputError) as caught:
        train(data, run, config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows(run):
    with (run / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def same(one, other):
    """Whether two checkpoints are equal in everything that goes on, and in the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def assert_same_run(one, other):
    for key in ("net", "ema", "optimizers", "step"):
        assert same(one[key], other[key]), key


# --------------------------------------------------------------------------------------------------------- training


def test_the_loss_goes_down(data, tmp_path):
    config = replace(TINY, decay=0.0)
    for steps in (10, 110):
        trained(data, tmp_path, replace(config, steps=steps))
    first, later = (float(row["loss"]) for row in rows(tmp_path))
    assert later < 0.93 * first


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor always has denormal numbers")
def test_denormal_numbers_are_zero_while_it_trains_and_only_then(data, tmp_path):
    def denormal() -> float:
        return (torch.tensor([1e-38]) / 100).item()

    seen = []
    train(data, tmp_path / "run", TINY, report=lambda line: seen.append(denormal()))
    assert seen == [0.0] and denormal() > 0


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("at", [2, 5], ids=["before the decay", "within the decay"])
def test_an_interrupted_run_goes_on_exactly(data, whole, tmp_path, at):
    def interrupt(line):
        if line.startswith(f"step {at} "):
            raise Interrupted

    with pytest.raises(Interrupted):
        train(data, tmp_path, TINY, checkpoint_minutes=0, report=interrupt)
    torch.rand(7), np.random.rand(7)  # another process would have another random state
    parts, _ = trained(data, tmp_path)
    assert_same_run(parts, checkpoint_of(whole))


def test_a_flat_run_is_prolonged_exactly(data, tmp_path):
    flat = replace(TINY, decay=0.0)
    in_one_go, _ = trained(data, tmp_path / "in one go", replace(flat, steps=8))
    for steps in (4, 8):
        in_two, _ = trained(data, tmp_path / "in two", replace(flat, steps=steps))
    assert_same_run(in_two, in_one_go)


def test_the_same_configuration_gives_the_same_weights(data, whole, tmp_path):
    assert_same_run(trained(data, tmp_path)[0], checkpoint_of(whole))


def test_another_seed_gives_other_weights(data, whole, tmp_path):
    other, _ = trained(data, tmp_path, replace(TINY, seed=1))
    assert not same(other["net"], checkpoint_of(whole)["net"])


def test_a_finished_run_is_left_as_it_is(data, whole):
    once = checkpoint_of(whole)
    twice, lines = trained(data, whole)
    assert same(once, twice)
    assert lines == [] and len(rows(whole)) == 1


@pytest.mark.parametrize(
    "change", [{"channels": (8, 8)}, {"learning_rate": 1e-3}, {"batch_size": 2}, {"decay": 0.1}, {"seed": 1}]
)
def test_resuming_with_another_configuration_is_refused(data, whole, change):
    before = (whole / "checkpoint.pt").read_bytes()
    assert "configuration" in refused(data, whole, replace(TINY, **change))
    assert (whole / "checkpoint.pt").read_bytes() == before


def test_log_has_a_row_a_checkpoint_with_every_folder_measured(data, tmp_path):
    _, lines = trained(data, tmp_path, replace(TINY, steps=3), checkpoint_minutes=0)
    log = rows(tmp_path)
    assert [row["step"] for row in log] == ["1", "2", "3"] and len(lines) == 3
    assert {f"{folder} {sigma}" for folder in ("natural", "thermal") for sigma in (15, 25, 50)} <= log[0].keys()


def test_log_is_drawn(whole):
    picture = cv2.imread(str(whole / "log.png"))
    assert picture.shape[1] > picture.shape[0] > 100 and picture.std() > 5


def test_exported_prior_is_the_average_in_half_precision(whole):
    checkpoint, prior = checkpoint_of(whole), load_prior(whole / "prior")
    weights = prior.unet.state_dict()
    assert weights.keys() == checkpoint["ema"].keys()
    assert all(torch.equal(weights[key], value.half().float()) for key, value in checkpoint["ema"].items())
    assert torch.equal(prior.scheduler.alphas_cumprod, prior.unet.schedule.alphas_cumprod)


def test_average_lags_behind_the_weights_and_is_not_their_start(whole):
    checkpoint = checkpoint_of(whole)
    torch.manual_seed(TINY.seed)
    start = new_unet(TINY).state_dict()
    for other in (checkpoint["net"], start):
        assert not same(checkpoint["ema"], other)


# -------------------------------------------------------------------------------------------------------- bad input


def test_a_missing_folder_is_refused(tmp_path):
    assert "absent" in refused(tmp_path / "absent", tmp_path / "run")


def test_an_empty_folder_is_refused_and_nothing_written(tmp_path):
    (tmp_path / "data/natural").mkdir(parents=True)
    refused(tmp_path / "data", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pictures_smaller_than_a_crop_are_refused(data, tmp_path):
    assert "64" in refused(data, tmp_path / "run", replace(TINY, crop=64))


def test_a_file_that_is_no_picture_is_named(tmp_path):
    (tmp_path / "data/natural").mkdir(parents=True)
    (tmp_path / "data/natural/broken.png").write_bytes(b"no image")
    assert "broken.png" in refused(tmp_path / "data", tmp_path / "run")


def test_a_run_starts_from_a_prior(data, whole, tmp_path):
    unmoved = replace(TINY, steps=1, learning_rate=0.0)
    checkpoint, _ = trained(data, tmp_path, unmoved, initial=whole / "prior")
    start = load_prior(whole / "prior").unet.state_dict()
    assert all(torch.allclose(checkpoint["net"][key], value) for key, value in start.items())


def test_a_prior_of_another_architecture_is_refused(data, whole, tmp_path):
    for initial in (whole / "prior", "embedded"):
        with pytest.raises(InputError, match="architecture"):
            train(data, tmp_path, replace(TINY, channels=(8, 24)), initial=initial)


def test_a_run_starts_from_the_checkpoint_of_another(data, whole, tmp_path):
    checkpoint, _ = trained(data, tmp_path, replace(TINY, steps=1, learning_rate=0.0), initial=whole / "checkpoint.pt")
    assert all(torch.allclose(checkpoint["net"][key], value) for key, value in checkpoint_of(whole)["ema"].items())


def test_no_steps_are_refused(data, tmp_path):
    with pytest.raises(InputError, match="1 step"):
        TrainingConfig(steps=0)


def test_a_run_that_is_a_file_is_refused(data, tmp_path):
    (tmp_path / "run").touch()
    assert "run" in refused(data, tmp_path / "run")


def test_held_out_images_smaller_than_a_crop_are_said_and_skipped(data, tmp_path):
    small = tmp_path / "data/natural"
    small.mkdir(parents=True)
    for k in range(30):
        cv2.imwrite(str(small / f"{k:03d}.png"), made_image(*((32, 40) if k % 2 else (12, 12)), seed=k))
    checkpoint, lines = trained(tmp_path / "data", tmp_path / "run")
    assert "skipped" in lines[0] and checkpoint["step"] == TINY.steps


def test_a_checkpoint_without_its_keys_is_refused(data, whole, tmp_path):
    state = checkpoint_of(whole)
    del state["optimizers"]
    torch.save(state, tmp_path / "checkpoint.pt")
    assert "checkpoint.pt" in refused(data, tmp_path)


def test_divergence_keeps_the_last_good_checkpoint(data, tmp_path):
    with pytest.raises(InputError, match="diverged"):
        train(data, tmp_path, replace(TINY, learning_rate=1e6, steps=300), checkpoint_minutes=0)
    assert all(torch.isfinite(value).all() for value in checkpoint_of(tmp_path)["ema"].values())


def test_a_broken_checkpoint_is_refused_in_one_sentence(data, whole, tmp_path):
    for content in (b"", b"no archive", (whole / "checkpoint.pt").read_bytes()[:5000]):
        (tmp_path / "checkpoint.pt").write_bytes(content)
        assert "checkpoint.pt" in refused(data, tmp_path)
        assert (tmp_path / "checkpoint.pt").read_bytes() == content


# ---------------------------------------------------------------------------------------------------- its parts


def test_learning_rate_warms_up_stays_and_falls_to_zero():
    config = TrainingConfig(steps=1000, learning_rate=1e-3, decay=0.3)
    rates = np.array([learning_rate(step, config) for step in range(1001)])
    assert rates[0] == pytest.approx(1e-3 / 200)
    assert (np.diff(rates[:200]) > 0).all() and (np.diff(rates[701:]) < 0).all()
    assert (rates[199:701] == 1e-3).all()
    assert rates[1000] == pytest.approx(0, abs=1e-12)


@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0, 1))
def test_learning_rate_before_the_decay_does_not_depend_on_the_length(steps, more, decay):
    short, long = (TrainingConfig(steps=n, decay=decay) for n in (steps, steps + more))
    for step in {0, int(steps * (1 - decay)) // 2, int(steps * (1 - decay))}:
        assert learning_rate(step, short) == learning_rate(step, long)


@given(st.integers(1, 3000), st.floats(0, 1), st.data())
def test_learning_rate_is_never_negative_nor_above_the_warm_up(steps, decay, data):
    step = data.draw(st.integers(0, steps - 1))
    assert (
        0
        <= learning_rate(step, TrainingConfig(steps=steps, decay=decay))
        <= TrainingConfig().learning_rate * min(1, (step + 1) / 200)
    )


def test_most_noise_levels_lie_where_images_are_denoised_and_some_everywhere():
    sigma = noise_levels(replace(TINY, batch_size=40_000), torch.Generator().manual_seed(0))
    assert sigma.min() >= 0.01 and sigma.max() <= 160
    uniform, rest = sigma[::8].log(), sigma[1::8].log()
    assert uniform.mean().item() == pytest.approx(np.log(0.01 * 160) / 2, abs=0.1)
    assert rest.median().item() == pytest.approx(-1.4, abs=0.05)
    assert ((rest > -2.5) & (rest < -0.3)).double().mean().item() == pytest.approx(0.683, abs=0.02)


def test_training_makes_a_better_denoiser(data, tmp_path):
    config = replace(TINY, steps=60, decay=0.0)
    trained(data, tmp_path, config)
    prior = load_prior(tmp_path / "prior")
    pictures = [made_image(32, 40, seed=50)]

    def psnr(unet):
        return denoising_psnr(lambda y, sigma: unet.denoise(y, torch.tensor([sigma])), pictures, 50)

    torch.manual_seed(0)
    assert psnr(prior.unet) > psnr(new_unet(config).eval()) + 0.5


def test_psnr_is_measured_at_the_right_noise():
    grey = [np.full((160, 160), 128, np.uint8)]
    for sigma in (15, 25, 50):  # a denoiser that does nothing leaves the noise
        assert denoising_psnr(lambda y, _: y, grey, sigma) == pytest.approx(20 * np.log10(255 / sigma), abs=0.2)
