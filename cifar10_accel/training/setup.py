"""The start of every command that trains or evaluates: launch joined, settings resolved, data loaded."""

from dataclasses import dataclass, replace
from functools import cached_property

from accelerate import Accelerator

from cifar10_accel.data.batch_plan import BatchPlan
from cifar10_accel.data.dataset import Dataset
from cifar10_accel.data.datasets import ensure_dataset
from cifar10_accel.data.image_format import ImageFormat
from cifar10_accel.data.loader import TrainingLoader
from cifar10_accel.data.shared_memory import load_dataset_shared
from cifar10_accel.errors import SettingsError
from cifar10_accel.settings import Settings
from cifar10_accel.training.accelerator import make_accelerator, run_on_main, training_dtype


@dataclass(frozen=True)
class RunSetup:
    """The parts of a run that no step changes; the same on every rank but for the rank itself."""

    accelerator: Accelerator
    settings: Settings  # resolved: nothing is `auto` any more
    dataset: Dataset
    chosen_plan: BatchPlan | None = None  # None: as the settings say

    @cached_property
    def plan(self) -> BatchPlan:
        """Which images this rank gets in each step; `SettingsError` if the batch cannot be shared evenly."""
        return self.chosen_plan or BatchPlan.of(self.settings, self.accelerator, len(self.dataset.train))

    @cached_property
    def loader(self) -> TrainingLoader:
        """Makes this rank's training batches."""
        device, dtype = self.accelerator.device, training_dtype(self.accelerator)
        return TrainingLoader(self.dataset, self.plan, self.settings, device=device, dtype=dtype)

    def with_images_as(self, image_format: ImageFormat | None) -> "RunSetup":
        """Return the same setup with the normalisation that a run had before; unchanged for None."""
        if image_format is None or image_format == self.dataset.image_format:
            return self
        return replace(self, dataset=self.dataset.normalised_as(image_format))

    def with_plan(self, plan: BatchPlan) -> "RunSetup":
        """Return the same setup with other batches."""
        return replace(self, chosen_plan=plan)


def set_up_run(settings: Settings) -> RunSetup:
    """Join the launch, resolve `auto` and load the data set. All ranks must call this.

    Raises:
        SettingsError: The launch or the settings are not possible here.
        InputError: The data set cannot be had or is damaged.
    """
    accelerator = make_accelerator(settings)
    settings = resolve_settings(settings, accelerator)
    dataset = load_dataset_shared(accelerator, settings)
    require_sizes_that_fit(settings, dataset)
    return RunSetup(accelerator, settings, dataset)


def resolve_settings(settings: Settings, accelerator: Accelerator) -> Settings:
    """Replace the recipe, data set and precision `auto` by what they stand for here. All ranks must call this.

    Every rank looks for the data set, and waits while one of its machine downloads it; the main process decides.
    """
    settings = settings.resolve_recipe(on_cpu=accelerator.device.type == "cpu")
    found = ensure_dataset(settings)
    dataset = run_on_main(accelerator, lambda: found)
    return settings.model_copy(update={"dataset": dataset, "precision": accelerator.mixed_precision})


def require_sizes_that_fit(settings: Settings, dataset: Dataset) -> None:
    """Raise `SettingsError` for sizes in the settings that the images of the data set do not have."""
    size = dataset.image_format.size
    if settings.low_res_epochs and settings.low_res_size >= size:
        raise SettingsError(
            f"low_res_size: {settings.low_res_size} is not below the {size} pixels a side of the images; "
            "give less, or --low-res-fraction 0"
        )
    if "cutout" in settings.augment and settings.cutout_size >= size:  # nothing would be left of an image
        raise SettingsError(f"cutout_size: {settings.cutout_size}, but the images have {size} pixels a side; give less")
