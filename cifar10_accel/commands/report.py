"""Write the page of an existing run from the content of its folder."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from cifar10_accel.errors import UserError
from cifar10_accel.files import output_of
from cifar10_accel.report.grad_cam import GradCamGallery
from cifar10_accel.report.images import most_confident_mistakes
from cifar10_accel.report.run_page import PageImages, write_run_page
from cifar10_accel.report.sprite import rgb
from cifar10_accel.runs.predictions import Predictions
from cifar10_accel.runs.saved_run import Pixels, SavedRun

MAX_GRAD_CAM_IMAGES = 24


def report(path: Path, *, grad_cam: bool = False, data_dir: Path | None = None) -> Path:
    """Write report.html into a run folder; the page of an unfinished run shows what there is.

    Args:
        path: The run folder.
        grad_cam: Add Grad-CAM heat maps of the most confident mistakes, for which the newest checkpoint is loaded.
        data_dir: Folder of the data set, for the pictures; None: by the environment, else as in the run. Nothing is
            downloaded: without the data set the page has no pictures.

    Returns:
        The path of the page.

    Raises:
        InputError: `path` is not a run folder.
        OutOfResourcesError: The disk is full.
        SettingsError: The page cannot be written for another reason.
    """
    run, images = SavedRun.load(path, data_dir=data_dir), PageImages()
    if run.test is not None or run.dynamics is not None:
        try:
            images = _page_images(run, grad_cam=grad_cam)
        except UserError as error:
            run = replace(run, missing=(*run.missing, f"no pictures: {error}"))
    with output_of(None, run.folder.report):
        write_run_page(run.folder.report, run, images)
    return run.folder.report


def _page_images(run: SavedRun, *, grad_cam: bool) -> PageImages:
    dataset = run.dataset()
    are_trained = run.dynamics is not None and np.array_equal(run.dynamics.label, dataset.train.labels)
    images = PageImages(test=dataset.test.images, train=dataset.train.images if are_trained else None)
    if not grad_cam:
        return images
    if run.test is None or run.test.correct.all():
        reason = "there are no predictions for the test set" if run.test is None else "no image was misclassified"
        return replace(images, no_grad_cam=f"No heat maps: {reason}.")
    try:
        return replace(images, grad_cam=_grad_cam_gallery(run.folder.path, run.test, dataset.test.images))
    except UserError as error:  # of a model without feature maps, such as a vision transformer; the page is made anyway
        return replace(images, no_grad_cam=f"No heat maps: {error}.")


def _grad_cam_gallery(folder: Path, test: Predictions, images: Pixels) -> GradCamGallery:
    """Return the most confident mistakes with heat maps of the predicted and of the true class."""
    import torch  # takes seconds, and only pages with heat maps need it

    from cifar10_accel.models.classifier import Classifier
    from cifar10_accel.models.grad_cam import feature_maps, heat_maps, overlay

    rows = most_confident_mistakes(test)[:MAX_GRAD_CAM_IMAGES]
    chosen = images[test.index[rows]]
    model = Classifier.from_run(folder)
    inputs = torch.from_numpy(chosen).permute(0, 3, 1, 2) / 255
    maps, _ = feature_maps(model, inputs[:1])

    def overlays(classes: np.ndarray) -> Pixels:
        heats = heat_maps(model, inputs, torch.from_numpy(classes)).numpy()
        return np.array([overlay(image, heat) for image, heat in zip(chosen, heats, strict=True)])

    return GradCamGallery(
        rows=rows,
        images=rgb(chosen),
        for_prediction=overlays(test.prediction[rows]),
        for_label=overlays(test.label[rows]),
        layer=maps.layer,
        shape=(maps.values.shape[maps.dims[0]], maps.values.shape[maps.dims[1]]),
        is_traced=maps.is_traced,
    )
