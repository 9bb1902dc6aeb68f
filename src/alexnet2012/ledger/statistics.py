"""Differences between networks: estimates over seeds and images, their tests and their power.

A network's error depends on its seed and on the images that happen to be in the data set. Every
network of a sweep sees the same images, so seeds and images are crossed, and a difference has two
parts of variance: that between seeds, which falls with the number of seeds, and that between
images, which does not.

Shapes: S runs, N images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alexnet2012.utils.intervals import mean_interval

MIN_SEEDS = 3  # for an interval: that of two seeds that agree by chance is too narrow
LEVEL = 0.05  # of two-sided tests, and of false discoveries among all claims that are tested
ENOUGH_POWER = 0.8
MOST_SEEDS = 10_000  # of a search

Matrix = npt.NDArray[np.float64]  # [S, N] errors by run and image, in points


@dataclass(frozen=True)
class Design:
    """What a difference is measured with; standard deviations and errors are in points.

    Without control seeds it is a mean of differences within runs, as of one view and ten.
    """

    seeds: int
    seed_sd: float  # between the runs of an arm, on the same images
    control_seeds: int = 0
    control_sd: float = 0.0
    image_se: float = 0.0  # from the choice of images alone; no number of seeds lowers it

    @property
    def standard_error(self) -> float:
        return math.sqrt(sum(self._parts()) + self.image_se**2)

    @property
    def degrees_of_freedom(self) -> float:
        """Of Student's t (Welch, Satterthwaite); those of the images are taken as infinite."""
        counts = (self.seeds, self.control_seeds)
        parts = self._parts()
        below = sum(part**2 / (n - 1) for part, n in zip(parts, counts, strict=True) if n > 1)
        if below == 0:
            return max(1, sum(n - 1 for n in counts if n > 1))
        return self.standard_error**4 / below

    def with_seeds(self, seeds: int, control_seeds: int | None = None) -> Design:
        """Other numbers of seeds; the control's keeps its ratio to the arm's unless given."""
        if control_seeds is None:
            control_seeds = math.ceil(seeds * self.control_seeds / self.seeds)
        return replace(self, seeds=seeds, control_seeds=control_seeds if self.control_seeds else 0)

    def power(self, size: float, level: float = LEVEL) -> float:
        """Probability to find an effect of this size, in its direction, at a two-sided level."""
        from scipy.special import nctdtr, stdtrit  # takes 0.4 s, so only if needed

        if self.standard_error == 0:
            return float(size != 0)
        df, shift = self.degrees_of_freedom, abs(size) / self.standard_error
        critical = float(stdtrit(df, 1 - level / 2))
        if shift > critical + 10:  # where the noncentral t of scipy is not a number
            return 1.0
        return 1 - float(nctdtr(df, shift, critical))

    def _parts(self) -> tuple[float, float]:
        control = self.control_sd**2 / self.control_seeds if self.control_seeds else 0.0
        return self.seed_sd**2 / self.seeds, control


@dataclass(frozen=True)
class Estimate:
    """A measured difference, positive in the claimed direction, and the size that is claimed."""

    arm: str
    metric: str
    mean: float  # points
    design: Design
    images: int = 0  # that the runs were compared on; 0: by image nothing is known
    claimed: float | None = None  # points; None: no size is claimed
    smallest: float = 1.0  # points; the smallest effect of interest, where no size is claimed
    networks: int = 1  # behind each of the design's seeds: 5 where averages of five are compared

    @property
    def size(self) -> float:
        """The effect that the measurement has to be able to see."""
        return self.smallest if self.claimed is None else self.claimed

    @property
    def measurable(self) -> bool:
        """Whether there are seeds enough for an interval, in each arm."""
        control = self.design.control_seeds
        return self.design.seeds >= MIN_SEEDS and (control == 0 or control >= MIN_SEEDS)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95%; None with too few seeds."""
        if not self.measurable:
            return None
        from scipy.special import stdtrit

        half = float(stdtrit(self.design.degrees_of_freedom, 1 - LEVEL / 2))
        half *= self.design.standard_error
        return self.mean - half, self.mean + half

    @property
    def size_inside(self) -> bool | None:
        """Whether the interval holds the claimed size; None without either."""
        if self.claimed is None or self.interval is None:
            return None
        return self.interval[0] <= self.claimed <= self.interval[1]

    def p_value(self, hypothesis: float = 0.0) -> float | None:
        """Two-sided, that the difference is as hypothesised; None with too few seeds."""
        if not self.measurable:
            return None
        from scipy.special import stdtr

        away = abs(self.mean - hypothesis)
        if self.design.standard_error == 0:
            return float(away == 0)
        return 2 * float(stdtr(self.design.degrees_of_freedom, -away / self.design.standard_error))

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "interval": self.interval}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Estimate:
        kept = {name: value for name, value in fields.items() if name != "interval"}
        return cls(**{**kept, "design": Design(**fields["design"])})

    def __str__(self) -> str:
        return str(SeedMean(self.mean, self.interval, self.design.seeds))


def between_arms(
    arm: Sequence[float],
    control: Sequence[float],
    images: Sequence[tuple[Matrix, Matrix]] = (),
) -> tuple[float, Design]:
    """Mean of an arm's runs minus that of the control's, all seeds of both.

    Args:
        arm, control: one value per run, points.
        images: the same runs' errors by image [S, N], for each set of images that the value
            depends on.
    """
    design = Design(
        len(arm), _sd(arm), len(control), _sd(control), math.sqrt(sum(map(_image_variance, images)))
    )
    return float(np.mean(arm) - np.mean(control)), design


def within_runs(differences: Sequence[float], images: Matrix | None = None) -> tuple[float, Design]:
    """Mean of one difference per run; ``images`` [S, N] has it by image."""
    variance = 0.0 if images is None else _image_variance((images,))
    return float(np.mean(differences)), Design(
        len(differences), _sd(differences), image_se=math.sqrt(variance)
    )


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for the expected share of false discoveries, in the given order.

    Source: Benjamini and Hochberg 1995.
    """
    order = np.argsort(p_values)[::-1]  # largest first
    ranks = np.arange(len(order), 0, -1)
    scaled = np.asarray(p_values, dtype=float)[order] * len(order) / ranks
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum.accumulate(np.minimum(scaled, 1.0))
    return [float(p) for p in adjusted]


def joint_power(designs: Sequence[Design], size: float, level: float = LEVEL) -> float:
    """Power of a claim about several arms, each of which must show it; as if independent."""
    return math.prod(design.power(size, level) for design in designs)


def seeds_needed(designs: Sequence[Design], size: float, level: float = LEVEL) -> int | None:
    """Seeds of an arm for 80% power, with the control's in proportion; None: no number will do."""

    def enough(seeds: int) -> bool:
        scaled = [design.with_seeds(seeds) for design in designs]
        return joint_power(scaled, size, level) >= ENOUGH_POWER

    if not enough(MOST_SEEDS):
        return None
    low, high = MIN_SEEDS - 1, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def expected_level(claims: Sequence[tuple[Sequence[Design], float]]) -> float:
    """The level at which Benjamini–Hochberg is expected to test if all claims are true.

    Of m claims, the r with the smallest p values are found at level 0.05 · r / m; r is the sum of
    the claims' powers at that level.
    """
    found = float(len(claims))
    for _ in range(100):  # falls to the largest fixed point
        level = LEVEL * max(found, 1.0) / len(claims)
        now = sum(joint_power(designs, size, level) for designs, size in claims)
        if found - now < 1e-6:
            break
        found = now
    return level


def direction(interval: tuple[float, float] | None, n_seeds: int) -> bool | None:
    """Whether a difference is above zero; None: too few seeds, or its interval contains zero."""
    if interval is None or n_seeds < MIN_SEEDS or interval[0] <= 0 <= interval[1]:
        return None
    return interval[0] > 0


@dataclass(frozen=True)
class SeedMean:
    """Mean of one value per seed, with its 95% interval; None for fewer than three seeds."""

    mean: float
    interval: tuple[float, float] | None
    n_seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> SeedMean:
        """The mean with Student's interval."""
        mean, low, high = mean_interval(values)
        has_interval = low is not None and high is not None and len(values) >= MIN_SEEDS
        return cls(mean, (low, high) if has_interval else None, len(values))  # type: ignore[arg-type]

    @property
    def above_zero(self) -> bool | None:
        """See :func:`direction`."""
        return direction(self.interval, self.n_seeds)

    def __str__(self) -> str:
        interval = self.interval
        bounds = "" if interval is None else f" ({interval[0]:+.1f} to {interval[1]:+.1f})"
        return f"{self.mean:+.2f}{bounds}"


def finished_runs(
    directory: Path, ablation: str, only: Sequence[int] | None = None
) -> dict[int, Path]:
    """Directories of an ablation's finished runs by seed; ``only`` selects seeds."""
    return {
        int(summary.parent.name): summary.parent
        for summary in sorted((directory / ablation).glob("*/summary.json"))
        if summary.parent.name.isdecimal() and (only is None or int(summary.parent.name) in only)
    }


def _image_variance(samples: Sequence[Matrix]) -> float:
    """Variance of the difference of one or two arms' means from the choice of images alone.

    The variance over images of the runs' mean also holds the interaction of run and image, which
    more runs average out and which the variance between runs already holds; it is subtracted.
    """
    means = [sample.mean(0) for sample in samples]
    by_image = means[0] - means[1] if len(means) > 1 else means[0]
    variance = by_image.var(ddof=1) - sum(_interaction(x) / len(x) for x in samples)
    return max(0.0, float(variance)) / len(by_image)


def _interaction(sample: Matrix) -> float:
    """Mean square of what neither run nor image explain; 0 for a single run."""
    runs, images = sample.shape
    if runs < 2:
        return 0.0
    rest = sample - sample.mean(0) - sample.mean(1, keepdims=True) + sample.mean()
    return float((rest**2).sum() / ((runs - 1) * (images - 1)))


def _sd(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
