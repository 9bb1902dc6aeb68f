"""Predictions equal those for the same image in a store; unusable images are reported."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from programs import module, succeed

from alexnet2012 import features, nearest, predict
from alexnet2012.cli.args import collect_images
from alexnet2012.config.compose import compose_config, hydra_overrides
from alexnet2012.config.enums import Device
from alexnet2012.config.inference_schema import FeaturesConfig, NearestConfig, PredictConfig
from alexnet2012.config.schema import ConfigError, RunError
from alexnet2012.data.loaders import EvalLoader
from alexnet2012.data.store import Store
from alexnet2012.inference import images
from alexnet2012.inference.features import Features
from alexnet2012.inference.images import find_images
from alexnet2012.inference.trained_model import TrainedModel, load_trained
from alexnet2012.utils.text import printable

Predict = Callable[..., dict]  # type: ignore[type-arg]


@pytest.fixture
def album(photos_folder: Path, tmp_path: Path) -> Path:
    """A folder of images with unusual names, a subfolder, a text file and a broken image."""
    album = tmp_path / "my album"
    (album / "rocks & bricks").mkdir(parents=True)
    (album / ".hidden").mkdir()
    val = photos_folder / "val"
    shutil.copy(val / "chelsea" / "0000.jpg", album / "café = 1.JPG")
    shutil.copy(val / "brick" / "0000.jpg", album / "rocks & bricks" / "<b>brick ${x}.jpg")
    shutil.copy(val / "coffee" / "0001.jpg", os.fsencode(album) + b"/late \xff\n.jpg")
    shutil.copy(val / "coffee" / "0001.jpg", album / ".hidden" / "0.jpg")
    (album / "broken.jpg").write_bytes((val / "moon" / "0000.jpg").read_bytes()[:900])
    (album / "notes.txt").write_text("no picture")
    return album


@pytest.fixture
def predict_json(saved_run: Path, capsys: pytest.CaptureFixture[str]) -> Predict:
    """Runs ``predict --json``, and returns its output."""

    def run(*pictures: object, checkpoint: object = saved_run, **others: object) -> dict:  # type: ignore[type-arg]
        given = [str(name) for name in pictures]
        config = PredictConfig(checkpoint, given, json=True, device=Device.cpu, **others)  # type: ignore[arg-type]
        predict.run(config, Path())
        return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]

    return run


def probabilities_in_the_store(
    net: TrainedModel, store: Store, views: int
) -> dict[str, torch.Tensor]:
    """By name in the source: probabilities for images loaded by DALI, averaged over views."""
    loader = EvalLoader(
        store, store.split("val", 1), net.model.recipe.augment,
        input_size=net.model.config.input_size, views=views, batch_size=8,
    )  # fmt: skip
    lines = (store.root / "val.tsv").read_text().splitlines()
    names = [json.loads(line.split("\t")[3]) for line in lines]
    rows = []
    with torch.no_grad():
        for batch in loader.batches():
            logits = net.model(batch.images.flatten(0, 1))
            rows.append(F.softmax(logits, 1).unflatten(0, (-1, views)).mean(1))
    return dict(zip(names[::3], torch.cat(rows), strict=True))


@pytest.mark.parametrize("views", [1, 10])
def test_predictions_equal_those_for_the_same_image_in_a_store(
    net: TrainedModel, photos_store: Store, photos_folder: Path, predict_json: Predict, views: int
) -> None:
    in_store = probabilities_in_the_store(net, photos_store, views)
    pictures = [photos_folder / name for name in in_store]
    output = predict_json(*pictures, views=views, guesses=16, batch_size=70)
    assert output["views"] == views and output["rejected"] == []
    assert len(output["pictures"]) == len(in_store) == 16
    for image in output["pictures"]:
        expected = in_store[str(Path(image["image"]).relative_to(photos_folder))]
        by_class = {guess["class"]: guess["probability"] for guess in image["guesses"]}
        assert [by_class[c] for c in net.classes] == pytest.approx(expected.tolist(), abs=1e-6)
        assert list(by_class.values()) == sorted(by_class.values(), reverse=True)


def test_a_broken_image_is_reported_and_the_others_are_classified(
    saved_run: Path, album: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sheet = tmp_path / "new" / "sheet.html"
    config = PredictConfig(
        str(saved_run), str(album), json=True, sheet=str(sheet), device=Device.cpu
    )
    with pytest.raises(RunError, match=r"^1 of 4 images could not be used$"):
        predict.run(config, tmp_path)
    out, err = capsys.readouterr()
    output = json.loads(out)
    names = [Path(image["image"]).name for image in output["pictures"]]
    assert names == ["café = 1.JPG", "late \udcff\n.jpg", "<b>brick ${x}.jpg"]
    assert [Path(image["image"]).name for image in output["rejected"]] == ["broken.jpg"]
    assert len(err.splitlines()) == 1
    assert err.startswith(f"alexnet2012: {album}/broken.jpg: ")
    page = sheet.read_text(encoding="utf-8")
    assert page.count("<img ") == 3 and page.count('<span class="name"') == 15
    assert "&lt;b&gt;brick" in page and "<b>brick" not in page
    assert "broken.jpg" in page and "late \\udcff\\n.jpg" in page
    assert "http" not in page and "<script" not in page


def test_the_terminal_output_fits_in_80_columns(
    saved_run: Path, album: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [str(album / "café = 1.JPG")]
    predict.run(PredictConfig(str(saved_run), pictures, device=Device.cpu), Path())
    out = capsys.readouterr().out
    assert out.splitlines()[0] == str(album / "café = 1.JPG")
    assert out.count("%") == 5 and "█" in out
    assert max(map(len, out.splitlines()[1:])) <= 80


def test_an_ensemble_averages_models_with_different_image_sizes(
    net: TrainedModel, saved_run: Path, photos_folder: Path, predict_json: Predict, tmp_path: Path
) -> None:
    picture = photos_folder / "val" / "clock" / "0000.jpg"
    from alexnet2012.checkpoint import io as checkpoint
    from alexnet2012.checkpoint import manifest
    from alexnet2012.checkpoint.manifest import to_plain
    from alexnet2012.checkpoint.state import TrainingState
    from alexnet2012.nn.alexnet import AlexNet

    other = AlexNet("paper", 16, model=net.model.config, seed=9)
    progress = manifest.read_progress(saved_run / "checkpoints" / "step-0000007")
    progress.settings["recipe"] = to_plain(other.recipe)
    mean_image = np.full((96, 96, 3), 120, np.float32)
    snapshot = TrainingState.of(other, None, progress, mean_image)
    checkpoint.save(tmp_path / "other", snapshot, other.mesh)
    nets = [str(saved_run), str(tmp_path / "other")]

    def probabilities(checkpoint: object) -> np.ndarray:  # type: ignore[type-arg]
        (image,) = predict_json(picture, checkpoint=checkpoint, guesses=16)["pictures"]
        by_class = {guess["class"]: guess["probability"] for guess in image["guesses"]}
        return np.array([by_class[name] for name in net.classes])

    assert probabilities(nets) == pytest.approx(
        (probabilities(nets[0]) + probabilities(nets[1])) / 2, abs=1e-9
    )
    assert abs(probabilities(nets[0]) - probabilities(nets[1])).max() > 1e-3
    progress.classes = [*progress.classes[1:], "another"]
    snapshot = TrainingState.of(other, None, progress, mean_image)
    checkpoint.save(tmp_path / "else", snapshot, other.mesh)
    with pytest.raises(ConfigError, match=r"checkpoint=.*else: has different classes than"):
        probabilities([*nets, str(tmp_path / "else")])


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(album: Path) -> Iterator[str]:
    handler = partial(_Quiet, directory=str(album))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_urls_are_downloaded_and_a_dead_url_is_reported(
    saved_run: Path,
    album: Path,
    server: str,
    predict_json: Predict,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, url = str(album / "café = 1.JPG"), f"{server}/caf%C3%A9%20=%201.JPG?size=1"
    of_file, of_url = (image["guesses"] for image in predict_json(file, url)["pictures"])
    assert of_file == of_url
    gone, nowhere, text = f"{server}/gone.jpg", "http://127.0.0.1:9/a.jpg", f"{server}/notes.txt"
    with pytest.raises(RunError, match="3 of 4"):
        predict_json(gone, file, nowhere, text)
    reasons = capsys.readouterr().err.splitlines()
    assert [line.split(": ", 2)[1] for line in reasons] == [gone, nowhere, text]
    assert "the server answered 404" in reasons[0]
    assert "cannot be reached" in reasons[1]
    assert "not an image" in reasons[2]


@pytest.mark.parametrize("dripping", ["headers", "body"])
def test_a_server_that_drips_is_given_up_and_not_waited_for(
    dripping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is of the whole download; no thread that waits for its server is joined."""
    closing = threading.Event()

    class Dripping(_Quiet):
        def do_GET(self) -> None:
            self.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
            if dripping == "body":
                self.wfile.write(b"\r\n\r\n")
            with suppress(OSError):
                while not closing.wait(0.05):
                    self.wfile.write(b"a")

    monkeypatch.setattr(images, "DOWNLOAD_S", 0.5)
    with ThreadingHTTPServer(("127.0.0.1", 0), Dripping) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.jpg"
        started_s = time.monotonic()
        (batch,) = images.decode_images([url, url], [72], 2, 2)
        assert time.monotonic() - started_s < 5
        closing.set()
        server.shutdown()
    assert batch.names == []
    assert [r.reason for r in batch.rejected] == ["the download took longer than 0 s"] * 2


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ("nowhere.jpg", "images=nowhere.jpg: does not exist"),
        ([], "no images given"),
        ("~nobody.jpg", "images=~nobody.jpg: does not exist"),
        ("EMPTY", "the folder contains no images"),
        ("BROKEN", "none of the images can be used"),
    ],
)
def test_a_mistake_in_the_image_names_is_reported(
    images: object, words: str, saved_run: Path, album: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    named = {"EMPTY": str(empty), "BROKEN": str(album / "broken.jpg")}
    images = named.get(images, images) if isinstance(images, str) else images
    with pytest.raises(ConfigError, match=words):
        predict.run(PredictConfig(str(saved_run), images, device=Device.cpu), tmp_path)


def read_back(words: list[str]) -> object:
    """The images as Hydra and OmegaConf parse them."""
    overrides = hydra_overrides(PredictConfig, collect_images(words))
    (override,) = OverridesParser.create().parse_overrides(overrides)
    config = OmegaConf.create({"images": override.value()})
    return OmegaConf.to_container(config, resolve=True)["images"]  # type: ignore[index,call-overload]


@settings(deadline=None, max_examples=40)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0="), min_size=1))
@example("\\")
@example('\\\\" ${oc.env:HOME} \\${x} [a, {b: c}]\\')
def test_any_file_name_reaches_the_program_unchanged(name: str) -> None:
    words = [f"dir/{name}", f"http://host/?x={name}"]
    assert read_back(words) == words
    assert printable(name).isprintable()


def test_bare_words_become_images_and_json_a_setting() -> None:
    words = ["checkpoint=RUN", "it's (1), [2] ${x}.jpg", "--json", "http://host/?id=1", "views=1"]
    config, _ = compose_config("predict", PredictConfig, collect_images(words))
    assert config.images == ["it's (1), [2] ${x}.jpg", "http://host/?id=1"]
    assert (config.json, config.views, config.checkpoint) == (True, 1, "RUN")


def test_hydra_flags_are_not_taken_for_images() -> None:
    words = ["--cfg", "job", "checkpoint=RUN", "images=a.jpg"]
    assert collect_images(words) == words


def test_features_are_last_hidden_activations_and_an_image_is_nearest_to_itself(
    net: TrainedModel, saved_run: Path, album: Path, photos_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "features.npy"
    features.run(
        FeaturesConfig(str(saved_run), str(photos_folder / "val"), str(out), device=Device.cpu),
        tmp_path,
    )
    loaded = Features.load(out)
    assert loaded.activations.shape == (48, net.model.layers()["fc7"].rows.total)
    assert loaded.files == find_images(str(photos_folder / "val"))
    with torch.no_grad():  # the features are the input of fc8
        logits = net.model.fc8(torch.from_numpy(loaded.activations[:1]))
    capsys.readouterr()
    config = PredictConfig(
        str(saved_run), loaded.files[0], views=1, guesses=1, json=True, device=Device.cpu
    )
    predict.run(config, tmp_path)
    (image,) = json.loads(capsys.readouterr().out)["pictures"]
    best = F.softmax(logits[0].double(), 0).max(0)
    assert image["guesses"] == [
        {"class": net.classes[best.indices], "probability": pytest.approx(float(best.values))}
    ]

    query = NearestConfig(str(out), [loaded.files[20]], count=3, json=True, device=Device.cpu)
    nearest.run(query, tmp_path)
    (answer,) = json.loads(capsys.readouterr().out)["pictures"]
    distances = np.linalg.norm(loaded.activations - loaded.activations[20], axis=1)
    assert answer["nearest"] == [loaded.files[i] for i in np.argsort(distances, kind="stable")[:3]]
    assert answer["distances"] == pytest.approx(np.sort(distances)[:3].tolist(), rel=1e-4, abs=1e-4)
    query.json = False
    nearest.run(query, tmp_path)
    assert loaded.files[20] in capsys.readouterr().out.replace("\n", "")


def test_features_of_another_model_or_with_a_wrong_list_are_refused(
    saved_run: Path, net: TrainedModel, photos_folder: Path, tmp_path: Path
) -> None:
    out, picture = tmp_path / "features.npy", str(photos_folder / "val" / "moon")
    config = FeaturesConfig(str(saved_run), picture, str(out), device=Device.cpu)
    features.run(config, tmp_path)
    from alexnet2012.config.enums import ExportFormat
    from alexnet2012.inference.export import export

    net_file, other = tmp_path / "net.safetensors", tmp_path / "other.safetensors"
    export(net, ExportFormat.safetensors, net_file)
    nearest.run(NearestConfig(str(out), picture, str(net_file), device=Device.cpu), tmp_path)
    other.write_bytes(net_file.read_bytes()[:-4] + b"\0\0\0\x3f")  # changes one weight
    with pytest.raises(ConfigError, match=r"other\.safetensors: is not the model that computed"):
        nearest.run(NearestConfig(str(out), picture, str(other), device=Device.cpu), tmp_path)
    np.save(out, np.zeros((2, 3), np.float32))
    with pytest.raises(ConfigError, match="the number of rows differs"):
        nearest.run(NearestConfig(str(out), picture, device=Device.cpu), tmp_path)
    with pytest.raises(ConfigError, match=r"features=.*nowhere.npy: cannot be read"):
        nearest.run(NearestConfig(str(tmp_path / "nowhere.npy"), picture), tmp_path)


def test_the_program_prints_nothing_but_its_result(saved_run: Path, album: Path) -> None:
    words = module("predict", f"checkpoint={saved_run}", "café = 1.JPG", "--json", "device=cpu")
    ended = succeed(words, album)
    assert json.loads(ended.out)["pictures"][0]["image"] == "café = 1.JPG"
    assert ended.err == ""


def test_loading_restores_the_tf32_setting_of_training(
    saved_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's own default
    load_trained(saved_run)
    assert not torch.backends.cudnn.allow_tf32
