"""Writes the page of a run that was made before, from what its folder holds."""

from pathlib import Path

import numpy as np

from cifar10_accel.errors import OutOfResourcesError, UserError
from cifar10_accel.pages.grad_cam import Looks
from cifar10_accel.pages.images import confident_mistakes
from cifar10_accel.pages.run import write_run_page
from cifar10_accel.past_run import PastRun, Pixels
from cifar10_accel.predictions import Predictions

MOST_LOOKS = 24  # mistakes with heat maps


def report(run: Path, *, grad_cam: bool = False, data_dir: Path | None = None) -> Path:
    """Writes report.html into a run folder and returns its path; a run that is not finished gets what there is.

    grad_cam: also show where the net looked in its most confident mistakes; this loads the newest checkpoint.
    Pictures need the data set where the run had it, or in `data_dir`; nothing is downloaded. Raises `InputError` if
    it is not a run folder, `OutOfResourcesError` if the page cannot be written.
    """
    past = PastRun.read(run, data_dir=data_dir)
    missing, images, training_images, looks = list(past.missing), None, None, None
    if past.test is not None or past.dynamics is not None:
        try:
            dataset = past.dataset()
            images = dataset.test.images
            if past.dynamics is not None and np.array_equal(past.dynamics.label, dataset.train.labels):
                training_images = dataset.train.images
            if grad_cam and past.test is not None and not past.test.correct.all():
                looks = _looks(past, past.test, images)
        except UserError as error:
            missing.append(str(error))
    try:
        write_run_page(
            past.folder.report, name=past.folder.name(), settings=past.settings.model_dump(mode="json"),
            environment=past.environment, summary=past.summary, lines=past.lines, class_names=past.class_names(),
            test=past.test, val=past.val, images=images,
            dynamics=past.dynamics, training_images=training_images,
            robustness=past.folder.read_json("robustness.json"),
            robustness_sheet=past.folder.read_bytes("robustness.png"), looks=looks, missing=missing,
        )  # fmt: skip
    except OSError as error:
        raise OutOfResourcesError(f"{past.folder.report}: cannot be written ({error.strerror}); make room") from None
    return past.folder.report


def _looks(past: PastRun, test: Predictions, images: Pixels) -> Looks:
    """The most confident mistakes with what spoke for the answer, and what for the truth."""
    import torch  # takes seconds, which a page without heat maps does not need

    from cifar10_accel.classifier import of_run
    from cifar10_accel.grad_cam import heat_maps, overlay

    rows = confident_mistakes(test)[:MOST_LOOKS]
    chosen = images[test.index[rows]]
    net, _ = of_run(past.folder.path)
    inputs = torch.from_numpy(chosen).permute(0, 3, 1, 2) / 255
    heated = [
        np.array([
            overlay(image, heat)
            for image, heat in zip(chosen, heat_maps(net, inputs, torch.from_numpy(classes[rows])).numpy(), strict=True)
        ]).reshape(chosen.shape)
        for classes in (test.prediction, test.label)
    ]  # fmt: skip
    return Looks(rows=rows, images=chosen, for_answer=heated[0], for_truth=heated[1])
