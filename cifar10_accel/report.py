"""Writes the page of a run that was made before, from what its folder holds."""

from pathlib import Path

from cifar10_accel.errors import OutOfResourcesError, UserError
from cifar10_accel.pages.run import write_run_page
from cifar10_accel.past_run import PastRun


def report(run: Path) -> Path:
    """Writes report.html into a run folder and returns its path; a run that is not finished gets what there is.

    Pictures need the data set where the run had it; nothing is downloaded. Raises `InputError` if it is not a
    run folder, `OutOfResourcesError` if the page cannot be written.
    """
    past = PastRun.read(run)
    missing, images = list(past.missing), None
    if past.test is not None:
        try:
            images = past.test_images()
        except UserError as error:
            missing.append(str(error))
    try:
        write_run_page(
            past.folder.report, name=past.folder.name(), settings=past.settings.model_dump(mode="json"),
            environment=past.environment, summary=past.summary, lines=past.lines, class_names=past.class_names(),
            test=past.test, val=past.val, images=images, missing=missing,
        )  # fmt: skip
    except OSError as error:
        raise OutOfResourcesError(f"{past.folder.report}: cannot be written ({error.strerror}); make room") from None
    return past.folder.report
