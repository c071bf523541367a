"""What the deformable and the linear stage are told, as data (see `itk_nir.options`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from itk_nir.engine.coordinate_networks import FieldConfig
from itk_nir.engine.metric_protocol import check_metrics
from itk_nir.engine.metrics import METRICS, NONE, Metric, MetricNames, channel_metrics, mean_tuning, of_one_contrast
from itk_nir.engine.regularisers import REGULARISERS, Regulariser
from itk_nir.engine.restriction import check_restriction
from itk_nir.errors import OptionError
from itk_nir.options import check, check_levels, documented, option, options_in

#: Levels that a long image has at most where coarser ones are put before those of the preset.
MOST_LEVELS = 4

#: A plane of unlike contrasts that is longer than this share of `coarsest_size` gets one more coarse level: sections of
#: tissue are full of cells that have no counterpart in another stain, so that only what is larger can lead the way.
PLANE_SHARE = 0.75

#: Levels that a user can ask for.
MOST_GIVEN_LEVELS = 16

#: Nodes along an axis at which the network is evaluated, about: it is smooth, and on the longest images they would cost
#: more than all else.
MOST_NODES = 32

#: Options that have another value, unless they are given, where one of others is: what is asked for is done, whatever
#: the images are like.
ASKED = (
    ({"iterations"}, "extra_iterations_below", 0),
    ({"iterations", "shrink_factors"}, "coarsest_size", 0),
    ({"grid_spacing"}, "thin_masks", False),
    ({"linear_size", "linear_iterations"}, "linear_plane_size", 0),
    ({"smoothing_sigmas"}, "noise_sigma", 0.0),
    ({"smoothing_sigmas"}, "plane_sigma", 0.0),
)

#: The network of the coarse field: sines of Fourier features (see `itk_nir.engine.coordinate_networks`). It is
#: evaluated on a lattice of some thousand points, so its size hardly shows in the time of an iteration.
COARSE_NETWORK = FieldConfig(
    encoding="fourier", activation="sine", width=64, depth=2, omega=10.0, frequencies=64, scale=1.0
)


@documented
@dataclass(frozen=True)
class DeformableSettings:
    """What the deformable stage is told. Tuples have one value a level, coarsest first.

    Raises
    ------
    OptionError
        A value that its option does not allow, or values that do not go together.
    """

    kind: ClassVar[str] = "deformable"

    metric: str | Metric | tuple[str | Metric, ...] = option(
        "auto",
        "similarity metric: a name, a weighted sum such as '0.5*nmi + 0.5*mind', or an object with the protocol of "
        "`itk_nir.engine.metrics.Metric`; one for all channels of the images, or one for each. 'auto' looks at the "
        "pair and picks, and the report says which and why; 'none' leaves landmarks and labels alone",
        choices=MetricNames(METRICS, ("auto", NONE)), public=True,
    )  # fmt: skip
    channel_weights: tuple[float, ...] = option(
        (),
        "weight of each channel of the images in the similarity; left out, all count the same",
        above=0,
        at_most=1e6,
        public=True,
    )
    iterations: tuple[int, ...] = option(
        (48, 20, 10), "most iterations of each level", at_least=0, at_most=100_000, per_level=True, public=True
    )
    shrink_factors: tuple[int, ...] = option(
        (4, 2, 1),
        "voxel size of each level, in voxels of the fixed image along its finest axis. Coarser axes are shrunk less, "
        "so that levels are as isotropic as they can be. Two levels of one size may differ in their control points",
        at_least=1,
        at_most=1024,
        per_level=True,
        public=True,
    )
    smoothing_sigmas: tuple[float, ...] = option(
        (0.4, 0.3, 0.6),
        "Gaussian sigma of each level, in voxels of the level",
        at_least=0,
        at_most=1000,
        per_level=True,
        public=True,
    )
    noise_sigma: float = option(
        0.9, "least sigma of each level, in voxels of the level, where the noise of an image exceeds 8 % of its range "
        "(3.5 % in 2D) and the metric is one of one contrast; 0, or `smoothing_sigmas` given: noise changes nothing",
        at_least=0, at_most=1000,
    )  # fmt: skip
    plane_sigma: float = option(
        0.6, "the same for the first level of 2D images, whatever their noise", at_least=0, at_most=1000
    )
    radius: tuple[int, ...] = option(
        (5, 6, 8), "radius of the window of a windowed metric, in voxels of the level",
        at_least=1, at_most=1_000_000, per_level=True, public=True,
    )  # fmt: skip
    learning_rates: tuple[float, ...] = option(
        (1.1, 0.66, 0.44),
        "first step of the optimiser (Adam) at each level, in voxels of the fixed image along its finest axis",
        above=0, at_most=100, per_level=True, public=True,
    )  # fmt: skip
    regulariser: str | Regulariser = option(
        "lorentzian",
        "penalty on the displacement: a name, or an object with the protocol of "
        "`itk_nir.engine.regularisers.Regulariser`",
        choices=REGULARISERS, public=True,
    )  # fmt: skip
    smoothness: tuple[float, ...] = option(
        (1.2, 0.65, 1.1), "weight of that penalty at each level; more is smoother",
        at_least=0, at_most=1e6, per_level=True, public=True,
    )  # fmt: skip
    grid_spacing: tuple[float, ...] = option(
        (1.0, 2.0, 2.0), "spacing of the control points of each level, in voxels of the level, or that of the level "
        "before where that is finer", above=0, at_most=10_000, per_level=True, public=True,
    )  # fmt: skip
    transform_model: Literal["velocity", "displacement"] = option(
        "velocity",
        "what the field is: a stationary velocity that is integrated (a diffeomorphism), or the displacement itself",
        choices=("velocity", "displacement"), public=True,
    )  # fmt: skip
    symmetric: bool = option(
        False,
        "also warp the fixed image by the inverse onto the moving one (seen through the linear map), and take the mean "
        "of both similarities",
        public=True,
    )
    search: Literal["auto", "always", "never"] = option(
        "auto",
        "search for large motion that a gradient cannot find, by matching the images over long distances, and begin "
        "with what is found where the first level ends better from there. 'auto' searches where things, or a part of "
        "them, move far, where the images have little in common to begin with, where a part has its counterpart "
        "elsewhere, or where landmarks are given",
        choices=("auto", "always", "never"), public=True,
    )  # fmt: skip
    restrict: tuple[bool | float, ...] = option(
        (),
        "along which axes of the fixed image things may move, 1 or 0 an axis: (0, 1, 0) moves them along the second "
        "alone (0x1x0 on the command line), in the linear stage as well; left out, along all",
        at_least=0, at_most=1, public=True,
    )  # fmt: skip
    region_weight: float = option(
        20.0,
        "weight of the penalty on regions that do not stay rigid or keep their volume while the field is trained; at "
        "the end they do so exactly, whatever the weight",
        at_least=0, at_most=1e6, public=True,
    )  # fmt: skip
    landmark_weight: float = option(
        0.003,
        "weight of the mean of s^2 log(1 + r^2/s^2) over the landmarks: r is the distance that is left, in voxels of "
        "the fixed image along its finest axis, s the shrink factor of the level",
        at_least=0, at_most=1e6, public=True,
    )  # fmt: skip
    label_weight: float = option(
        1.0, "weight of one minus the mean soft Dice overlap of the labels", at_least=0, at_most=1e6, public=True
    )
    labels: tuple[int, ...] = option(
        (), "values of the label maps that count; left out, all above 0 that both maps have", at_least=1, public=True
    )
    hold_unchanged: bool = option(
        True,
        "where the images lie on each other on one grid, and most of them differ by white noise alone, move only what "
        "differs by more, and around it, without a linear stage: else noise is fitted to noise",
    )
    thin_masks: bool = option(
        True,
        "with a fixed mask of a slice or a few, and a metric of one contrast, also try control points that lie "
        "`coarsest_grid_spacing` apart at every level, and keep that smoother field where it leaves hardly more "
        "unlike; left out where `grid_spacing` is given",
    )
    convergence_window: int = option(
        10, "iterations over which convergence is judged", at_least=1, at_most=100_000, public=True
    )
    convergence_threshold: float = option(
        0.0,
        "a level ends when the mean loss of a window of iterations is less than this below that of the window before; "
        "0 means never. The warm-up of the network ends with a step that promises less than its share of that",
        at_least=0, at_most=1e6, public=True,
    )  # fmt: skip

    learning_rate_end: float = option(
        0.25, "share of the learning rate that the last iteration of a level has", above=0, at_most=10
    )
    coarsest_grid_spacing: float = option(
        16.0,
        "spacing of the coarsest control points, where the network is evaluated, in voxels of the fixed image; a power "
        "of two times that of every level",
        above=0,
        at_most=1e6,
    )
    network: FieldConfig | None = option(
        COARSE_NETWORK,
        "coordinate network added to the control points, of the first field where fields are composed; None for none",
    )
    network_above: float = option(
        1.5,
        "the network is tried where control points alone find a motion (95th percentile) above this at the first "
        "level, in voxels of the level, and kept where the loss with it is lower; 0: it goes first, always",
        at_least=0,
        at_most=1e6,
    )
    network_radius: float = option(
        2.0,
        "how far the first step of the network may move the image, in learning rates of the level; the radius then "
        "grows and shrinks with how well the steps keep what the gradient promises",
        above=0,
        at_most=100,
    )
    network_warmup: float = option(
        0.42,
        "share of the first level's iterations in which the network alone is trained; in the others it rests, and the "
        "control points are trained",
        at_least=0,
        at_most=1,
    )
    composed: bool = option(
        True, "whether the first level trains a field of its own, which the field of the other levels is composed with"
    )
    integration_steps: int = option(
        2, "squarings of scaling and squaring, which integrates a velocity", at_least=0, at_most=12
    )
    lorentzian_scale: float = option(
        0.32,
        "gradient of the displacement from which on the 'lorentzian' penalty grows only with the logarithm; inf makes "
        "it plain diffusion",
        above=0, infinite=True,
    )  # fmt: skip
    landmark_distance: Literal["robust", "plain"] = option(
        "robust",
        "how the distance that is left of a landmark counts: 'robust' as `landmark_weight` says, and pairs that the "
        "others contradict are left out; 'plain' as it is, in voxels of the fixed image along its finest axis",
        choices=("robust", "plain"),
    )  # fmt: skip
    velocity_smoothness: tuple[float, ...] = option(
        (0.0, 0.0, 0.0), "weight of the diffusion of the velocity that is being trained, at each level",
        at_least=0, at_most=1e6, per_level=True,
    )  # fmt: skip
    jacobian_weight: float = option(1.0, "weight of the Jacobian-determinant penalty", at_least=0, at_most=1e6)
    jacobian_margin: float = option(0.4, "determinant below which that penalty sets in", at_least=0, at_most=1)
    extra_iterations_below: int = option(
        4_000_000,
        "a block of fewer voxels gets more iterations, up to twice as many: this over its voxels; and a metric may "
        "want more of them. 0 for exactly what `iterations` says",
        at_least=0,
    )
    coarsest_size: int = option(
        256,
        "a block that is longer than this many voxels of the first level gets coarser levels before it (a plane "
        "of unlike contrasts one more, above three quarters of that); 0 for never",
        at_least=0,
    )
    betas: tuple[float, float] = option((0.88, 0.99), "the two decay rates of Adam", at_least=0, below=1)

    @property
    def levels(self) -> int:
        """How many levels there are."""
        return len(self.shrink_factors)

    def __post_init__(self) -> None:
        check(self)
        check_metrics(self, "metric", "auto")
        if self.levels > MOST_GIVEN_LEVELS:
            raise OptionError(f"shrink_factors has {self.levels} levels, more than {MOST_GIVEN_LEVELS}; give fewer")
        check_levels(self, self.levels, "shrink_factors")
        check_restriction(self.restrict)
        if not self.levels or list(self.shrink_factors) != sorted(self.shrink_factors)[::-1]:
            raise OptionError(f"shrink_factors must fall from level to level, got {self.shrink_factors}")
        if sum(self.iterations) == 0:
            raise OptionError(f"iterations must not all be zero, got {self.iterations}")
        if self.symmetric and self.transform_model != "velocity":
            raise OptionError(
                "symmetric needs the inverse at every iteration, which only transform_model 'velocity' has; leave one "
                "of them out"
            )
        for s, f in zip(self.grid_spacing, self.shrink_factors, strict=True):
            k = math.log2(self.coarsest_grid_spacing / (s * f))
            if not (k > -1e-6 and abs(k - round(k)) < 1e-6):
                raise OptionError(
                    f"grid_spacing {s} at shrink factor {f} is {s * f:g} voxels; coarsest_grid_spacing "
                    f"({self.coarsest_grid_spacing:g}) must be that, or 2, 4, 8 … times that"
                )

    def halvings(self, level: int) -> int:
        """How many times the coarsest lattice is halved for a level: as often as for those before it, at least.

        Parameters
        ----------
        level : int
            Counted from 0, coarsest first.

        Returns
        -------
        int
        """
        finest = min(s * f for s, f in list(zip(self.grid_spacing, self.shrink_factors, strict=True))[: level + 1])
        return round(math.log2(self.coarsest_grid_spacing / finest))

    def for_pair(self, size: tuple[int, int, int], channels: int) -> DeformableSettings:
        """The settings for a block of the fixed grid and the chosen metric.

        An iteration on a small image costs little, and its time goes to start-up and files anyway. On a long one the
        first level must be coarse enough that its windows reach as far, as a share of the image, as on others.

        Parameters
        ----------
        size : tuple of int
            ``(x, y, z)`` voxels of the block.
        channels : int
            Of the images.

        Returns
        -------
        DeformableSettings
            See `extra_iterations_below`, `coarsest_size` and `itk_nir.engine.metrics.Tuning`.

        Raises
        ------
        OptionError
            Another number of metrics or of their weights than of channels.
        """
        metrics = channel_metrics(self.metric, self.channel_weights, channels)
        tuning = mean_tuning(metrics)
        out = replace(
            self,
            # Channels are evidence of their own: the mean over several says as much more as there are.
            smoothness=tuple(tuning.smoothness / channels * w for w in self.smoothness),
            velocity_smoothness=tuple(tuning.smoothness / channels * w for w in self.velocity_smoothness),
            jacobian_weight=tuning.jacobian_weight * self.jacobian_weight,
            jacobian_margin=min(1.0, tuning.jacobian_margin * self.jacobian_margin),
        )
        if self.extra_iterations_below:
            factor = max(1.0, min(2.0, self.extra_iterations_below / max(1, math.prod(size)))) * tuning.iterations
            out = replace(out, iterations=tuple(round(factor * n) for n in out.iterations))
        while self.coarsest_size and max(size) / out.shrink_factors[0] > self.coarsest_size:
            out = out._with_coarser_level()
        out = out._cut(max(self.levels, MOST_LEVELS))
        unlike = not of_one_contrast(metrics)
        if unlike and min(size) == 1 and max(size) / out.shrink_factors[0] > PLANE_SHARE * self.coarsest_size > 0:
            out = out._with_coarser_level()
        while self.coarsest_size and max(size) / out.coarsest_grid_spacing > MOST_NODES:
            out = replace(out, coarsest_grid_spacing=2 * out.coarsest_grid_spacing)
        return out

    def _cut(self, most: int) -> DeformableSettings:
        """The coarsest `most` levels: on the longest images the finest ones cost most and bring least."""
        if self.levels <= most:
            return self
        kept = {name: getattr(self, name)[:most] for name, o in options_in(self).items() if o.per_level}
        return replace(self, **kept)

    def _with_coarser_level(self) -> DeformableSettings:
        """The first level once more before it, with voxels, steps and control points of twice the size."""
        first: dict[str, Any] = {
            name: (getattr(self, name)[0], *getattr(self, name)) for name, o in options_in(self).items() if o.per_level
        }
        factor = 2 * self.shrink_factors[0]
        first["shrink_factors"] = (factor, *self.shrink_factors)
        first["learning_rates"] = (2 * self.learning_rates[0], *self.learning_rates)
        coarsest = self.coarsest_grid_spacing
        if self.grid_spacing[0] * factor > coarsest:
            coarsest *= 2
        return replace(self, **first, coarsest_grid_spacing=coarsest)


@documented
@dataclass(frozen=True)
class LinearSettings:
    """What the linear stage is told. Tuples have one value a level, coarsest first.

    Raises
    ------
    OptionError
        A value that its option does not allow, or values that do not go together.
    """

    linear_metric: str | Metric | tuple[str | Metric, ...] = option(
        "same",
        "similarity metric of the linear stage, as `metric`; 'same': that of the deformable one, a sum without 'mind'",
        choices=MetricNames(METRICS, ("same", NONE)), public=True,
    )  # fmt: skip
    linear_size: tuple[int, ...] = option(
        (28, 56),
        "voxels that the longest axis has at each level of the linear stage, about",
        at_least=1,
        at_most=1024,
        per_level=True,
    )
    linear_iterations: tuple[int, ...] = option(
        (50, 30),
        "most evaluations of the metric at each level of the linear stage",
        at_least=0,
        at_most=100_000,
        per_level=True,
    )
    linear_plane_size: int = option(
        112,
        "voxels that the longest axis has at one more level that 2D images of at least twice as many get, with the "
        "iterations of the last; 0 for none",
        at_least=0,
        at_most=1024,
    )
    linear_fine_iterations: int = option(
        40,
        "most evaluations of the metric at each of the finer levels of a linear stage that no deformation follows; 0 "
        "leaves them out",
        at_least=0,
        at_most=100_000,
    )
    linear_start_iterations: int = option(
        12,
        "evaluations that every start of the linear stage gets before the best is chosen",
        at_least=0,
        at_most=10_000,
    )
    linear_search_size: int = option(
        16, "voxels that the longest axis has in the search over rotations, about", at_least=4, at_most=256
    )
    linear_turned_starts: int = option(
        3,
        "how many rotations, the best of that search and of the principal axes, are followed as starts; four times as "
        "many where no two starts agree or the best one turns far",
        at_least=0,
        at_most=1000,
    )
    linear_radius: int = option(
        4,
        "radius of the window of a windowed metric in the linear stage, in voxels of the level",
        at_least=1,
        at_most=1_000_000,
    )
    linear_landmark_weight: float | None = option(
        None, "`landmark_weight` of the linear stage; left out, it is the same", at_least=0, at_most=1e6
    )
    linear_rotations: tuple[bool | float, ...] = option(
        (),
        "about which axes of the fixed image a rigid map may turn, 1 or 0 for each of three axes: (0, 0, 1) turns "
        "about the third alone, and shifts along all; left out, about all. An affine map turns about all",
        at_least=0, at_most=1,
    )  # fmt: skip
    linear_tolerance: float = option(
        1e-5, "a step of the linear stage that promises less than this of the similarity ends a level", above=0
    )

    def __post_init__(self) -> None:
        check(self)
        check_metrics(self, "linear_metric", "same")
        if any(value not in (0, 1) for value in self.linear_rotations) or len(self.linear_rotations) not in (0, 3):
            raise OptionError(
                f"linear_rotations is 1 for an axis about which a map may turn and 0 for one about which it may not, "
                f"for each of three axes, got {self.linear_rotations}"
            )
        if len(self.linear_size) != len(self.linear_iterations) or not self.linear_size:
            raise OptionError(
                f"linear_size has {len(self.linear_size)} values and linear_iterations {len(self.linear_iterations)}; "
                "give both one value a level"
            )
        if sum(self.linear_iterations) == 0:
            raise OptionError(
                f"linear_iterations must not all be zero, got {self.linear_iterations}; linear='none' leaves the stage "
                "out"
            )


@documented
@dataclass(frozen=True)
class SamplingSettings:
    """How fine the displacement grids are that a trained field is sampled on.

    Raises
    ------
    OptionError
        A value that its option does not allow.
    """

    max_interpolation_error: float = option(
        0.05,
        "largest error, in voxels of the fixed image, that linear interpolation between the points of the displacement "
        "grid may make; the coarsest grid that keeps it is taken",
        above=0,
        at_most=1000,
    )
    field_spacing: int | None = option(
        None,
        "spacing of that grid in voxels of the fixed image instead (1 is the fixed grid itself)",
        at_least=1,
        at_most=10_000,
    )

    def __post_init__(self) -> None:
        check(self)
