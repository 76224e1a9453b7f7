"""How a sweep was done, read from its numbers: what was held equal, and where it was not."""

from collections.abc import Iterator
from statistics import fmean

from student_trainer.reporting.accounts import forwards_ratio, savings, uneven_tuning
from student_trainer.reporting.results import SweepResults, Trial
from student_trainer.reporting.texts import duration_text, percent_text


def protocol(results: SweepResults) -> list[str]:
    """A sentence per rule that a reader should check."""
    return list(_protocol(results))


def _protocol(results: SweepResults) -> Iterator[str]:
    yield (
        "All methods of a setting and seed learn from the same rows, and the rows of a smaller budget are among those"
        " of a larger one. A seed draws the rows, the first weights and the order."
    )
    yield _validation(results)
    yield f"The test split is used once per cell and seed, {tested_how(results)}."
    if results.one_rate:
        yield "There was one learning rate for every method, not chosen."
    else:
        uneven, cells = uneven_tuning(results), len({trial.cell for trial in results.trials})
        rates = f"Learning rates tried: {results.sweep.trials_per_cell} for every method"
        yield f"{rates}, chosen by mean validation accuracy over the seeds." + (
            f" Not (yet) so in {len(uneven)} of {cells} cells." if uneven else ""
        )
    yield _forwards(results)
    yield from _all_label_forwards(results)
    yield from _reference_forwards(results)
    yield _axis(results)


def tested_how(results: SweepResults) -> str:
    """Of which weights the test accuracy is."""
    if not results.validated:
        return "at the last epoch" + (", with one learning rate, not chosen" if results.one_rate else "")
    if results.one_rate:
        return "at the epoch that validation chose, with one learning rate, not chosen"
    return "with the learning rate and epoch that validation chose"


def _axis(results: SweepResults) -> str:
    if not results.sweep.ledger.own:
        return "The axis of calls is the budget, as no ledger counts this sweep's calls alone."
    return (
        "The axis of calls is what a budget run was charged: its distinct answers, whether it caused the call or found"
        " the answer cached. With several views per image a training may consume fewer of them, as each epoch draws one"
        " view of an image (see the cost table)."
    )


def _validation(results: SweepResults) -> str:
    asked = [trial for trial in results.tested if trial.budget]
    shares = [trial.val_rows / (trial.rows + trial.val_rows) for trial in asked if trial.rows + trial.val_rows]
    if not results.validated:
        return "There were no validation rows: the last epoch counts, and nothing was chosen on held-out rows."
    chosen = "the epoch" if results.one_rate else "epoch and learning rate"
    low, high = round(100 * min(shares)), round(100 * max(shares))
    share = f"{low} %" if low == high else f"{low} to {high} %"
    return (
        f"Validation rows are {share} of all labels that a run uses; the teacher is never asked about them. They choose"
        f" {chosen}."
    )


def _forwards(results: SweepResults) -> str:
    ratio = forwards_ratio(_budget_labels(results))
    if ratio < 1.005:
        return "Every method of a budget forwards the same number of images through the student."
    if results.sweep.stops_early:
        reason = "early stopping makes the totals differ"
    else:
        reason = "steps are rounded up to whole epochs, so the totals differ"
    return (
        f"A step forwards the same number of images through the student for every method; {reason}, by up to"
        f" {ratio:.3g} times between two methods of one budget (see the cost table)."
    )


def _all_label_forwards(results: SweepResults) -> Iterator[str]:
    """What methods forward that use the labels of all images, each by name."""
    beside = [trial.student_forwards for trial in _budget_labels(results)]
    for method in dict.fromkeys(trial.loss for trial in results.tested if trial.all_labels):
        own = [trial.student_forwards for trial in results.tested if trial.all_labels and trial.loss == method]
        than = f", the methods beside it {_range(beside)}" if beside else ""
        yield f"{method} trains on the labels of all images and forwards {_range(own)}{than}: its epochs are longer."


def _budget_labels(results: SweepResults) -> list[Trial]:
    """Tested trials that used the labels of their budget's images only."""
    return [trial for trial in results.tested if trial.budget and not trial.all_labels]


def _range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _reference_forwards(results: SweepResults) -> Iterator[str]:
    """References that saw more images than the methods that they are held against."""
    asked = [trial.student_forwards for trial in _budget_labels(results)]
    free = [trial.student_forwards for trial in results.tested if not trial.budget]
    if free and asked and fmean(free) > 1.05 * max(asked):
        yield (
            f"The references without calls forward {fmean(free):,.0f} images, the methods {_range(asked)}: they get at"
            " least one whole epoch of all labels, so part of their lead is longer training."
        )


def cost_facts(results: SweepResults) -> list[tuple[str, str]]:
    """The whole sweep against a teacher in the loop."""
    total = savings(results)
    saved = total.online_calls - total.teacher_calls
    facts = [
        ("teacher calls", f"{total.teacher_calls:,} in the ledger, {results.sweep.ledger.attempts:,} attempts"),
        ("without a shared cache", f"{total.charged:,}: every training asks for its own answers once"),
        ("with the teacher online", f"{total.online_calls:,}: every answered image, each time it is trained on"),
    ]
    if total.online_calls:
        times = f", {total.online_calls / total.teacher_calls:,.0f} times fewer" if total.teacher_calls else ""
        facts.append(("saved against online", f"{saved:,} calls, {percent_text(saved / total.online_calls)}{times}"))
    trainings = f"{total.trainings:,} trainings, {duration_text(total.seconds)} of training time one after another"
    facts.append(("trainings", f"{trainings}, {total.student_forwards:,} images through students"))
    return facts


def provenance(results: SweepResults) -> list[tuple[str, str]]:
    """What would be needed to repeat it."""
    sweep = results.sweep
    machine, teacher = sweep.machine, sweep.teacher
    accuracy = "" if teacher.test_accuracy is None else f", {percent_text(teacher.test_accuracy)} on the test split"
    lost = f", {len(results.lost)} diverged" if results.lost else ""
    return [
        ("command", sweep.command),
        ("data set", f"{sweep.dataset}, {sweep.train_rows:,} training rows, {sweep.classes} classes"),
        ("teacher", f"{teacher.spec} ({teacher.id}){accuracy}"),
        ("students", ", ".join(dict.fromkeys(trial.student for trial in results.trials))),
        ("cells", f"{results.cells} of {sweep.cells} tested{lost}"),
        ("trials", f"{len(results.trials)} of {sweep.trials} finished"),
        ("machine", f"{machine.device}, {machine.jobs} jobs of {machine.threads} threads"),
        ("versions", ", ".join(f"{name} {version}" for name, version in machine.versions.items()) or "not recorded"),
        ("files", "table.md, table.csv, table.tex, calls.csv, tests.csv and the figures stand beside this page"),
    ]
