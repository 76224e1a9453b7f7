"""What the data of a sweep can and cannot support, in plain words."""

from collections.abc import Iterator
from statistics import median

from student_trainer.reporting.analysis import Analysis
from student_trainer.reporting.statistics import ENOUGH_SEEDS, LEVEL, smallest_rank_p


def limits(analysis: Analysis) -> list[str]:
    """A sentence or two per limit: seeds, what could be seen, test images, tuning, budgets."""
    return [*_seeds(analysis), *_sizes(analysis), *_test_images(analysis), *_scope(analysis)]


def _seeds(analysis: Analysis) -> Iterator[str]:
    low, counts = analysis.seeds[0], analysis.seeds_text
    if low < 2:
        yield "Some cells have one seed: they cannot be tested, and nothing is claimed from them."
        return
    if low < ENOUGH_SEEDS:
        yield f"Fewer than {ENOUGH_SEEDS} seeds (n = {counts}): read differences as a direction, not as a ranking."
    yield (
        "Tests are paired t-tests over seeds, whose rows all methods share. They take differences as normally"
        f" distributed, which n = {counts} cannot check. A rank test (Wilcoxon) cannot go below"
        f" p = {smallest_rank_p(low):.4g} at n = {low}, before any correction; its p stands in tests.csv as well."
    )


def _sizes(analysis: Analysis) -> Iterator[str]:
    widths = [(pair.test.high - pair.test.low) / 2 for part in analysis.panels for pair in part.pairs]
    if widths:
        yield (
            f"The 95 % interval of a difference reaches {100 * median(widths):.2f} points to each side (median over all"
            " pairs): differences much smaller than that could not have been shown, and “not shown” is not “equal”."
        )
        yield (
            f"“Shown” means a Holm-corrected p below {LEVEL:g}. All pairs at one budget are corrected together, and so"
            " are the comparing losses against the controls, and the losses against cross-entropy; several budgets or"
            " panels are several such families."
        )


def _test_images(analysis: Analysis) -> Iterator[str]:
    counts = sorted({trial.test_rows for trial in analysis.results.tested})
    if counts[0]:
        yield (
            f"Every run is tested on {' or '.join(f'{count:,}' for count in counts)} test images: one image is"
            f" {100 / counts[0]:.2f} points. The intervals cover the draw of rows, the initialisation and the order,"
            " not the choice of test images, teacher or data set."
        )


def _scope(analysis: Analysis) -> Iterator[str]:
    rates = analysis.results.sweep.trials_per_cell
    tuned = f"Each method was tuned over {rates} learning rates" if rates > 1 else "No method was tuned"
    others = "temperature or weight" if rates > 1 else "learning rate, temperature or weight"
    yield f"{tuned}; its other settings are those of the recipe. A loss may do better with another {others}."
    yield "Nothing is said about other budgets: calls are interpolated between those shown, never extrapolated."
    yield (
        "The intervals of calls-to-reach come from resampling the seeds. With this few seeds such intervals are too"
        " narrow: that two of them do not overlap shows nothing."
    )
