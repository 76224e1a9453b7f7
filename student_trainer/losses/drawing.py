"""Random numbers of a loss: from its seed and a counter, so that the state_dict says where a resumed run draws on."""

from student_trainer.losses.facts import TrainingFacts

SEED_STEP = 1_000_003
"""Draws after which one seed would repeat what the next one drew first: more than a training makes."""


class Drawing:
    """What a loss that draws inherits, before `DistillLoss`: a new seed for every draw, counted in its state."""

    _seed: int = 0
    _drawn: int = 0

    def start(self, facts: TrainingFacts) -> None:
        """Draw from ``facts.seed`` from here on."""
        self._seed, self._drawn = facts.seed, 0

    def next_seed(self) -> int:
        """The seed of the next draw, for a generator of its own: the global ones are never touched."""
        seed = (self._seed * SEED_STEP + self._drawn) % 2**63
        self._drawn += 1
        return seed

    def get_extra_state(self) -> dict[str, int]:
        """How many draws were made: part of the state_dict."""
        return {"drawn": self._drawn}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Continue after ``state``."""
        self._drawn = state["drawn"]
