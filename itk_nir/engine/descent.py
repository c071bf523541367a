"""The iterations of one level of the deformable stage: control points, network, and what is tried from a search."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from itk_nir.engine import ops
from itk_nir.engine.iterations import iterations_of
from itk_nir.engine.journal import RUNNING, Entry, Journal, as_rows, copied, load, load_list, rows_as_trace
from itk_nir.engine.level import FieldInTraining, Level
from itk_nir.engine.progress import Iteration
from itk_nir.engine.quasi_newton import Position, minimise
from itk_nir.engine.search_trial import Search
from itk_nir.engine.settings import DeformableSettings as Settings

#: A step of the network that promises less than this of the loss ends its training.
NETWORK_TOLERANCE = 1e-5

#: Motion that control points alone find (95th percentile), in voxels of the first level, from which on it is searched
#: for what they may have missed, or which a part of the image has (99th percentile) that moves so many times as far as
#: the rest (90th); and the share of what is left that the search must save: a field through matches is free to follow
#: what does not belong together.
FAR, PART, SEARCH_GAIN = 1.5, 5.0, 0.02

CONVERGED, CANCELLED, DONE = "converged", "cancelled", "all iterations done"

#: The numbers and the vectors of a `Position`.
_NUMBERS, _VECTORS = ("loss", "slope", "length", "radius", "tries", "evaluations"), ("x", "gradient", "direction")


class Told(Protocol):
    """Who is told of the iterations."""

    trace: list[Iteration]

    def goes_on(self, now: Iteration) -> bool:
        """Note an iteration.

        Parameters
        ----------
        now : Iteration
            The iteration.

        Returns
        -------
        bool
            Whether there shall be another.
        """


class Descent:
    """The iterations of a level.

    Parameters
    ----------
    level : Level
        The level.
    model : FieldInTraining
        The field, which is changed in place.
    told : Told
        Told of every iteration, and asked whether there shall be another.
    journal : Journal
        Of what was done before, and for what is done.
    keep_best : bool
        Where it says no, the field goes back to the iteration with the least loss, not to the last one.
    search : Search, optional
        Of the first level: what is tried where things move far, or where there is little evidence to begin with.
    """

    search: Search | None
    level: Level
    model: FieldInTraining
    told: Told
    keep_best: bool
    journal: Journal
    parts: int
    first_told: int
    settings: Settings
    iterations: int
    unit: float
    warmup: int
    before: int
    returned: bool

    def __init__(
        self, level: Level, model: FieldInTraining, told: Told, journal: Journal, keep_best: bool,
        search: Search | None = None,
    ) -> None:  # fmt: skip
        settings = level.settings
        self.search = search
        self.level, self.model, self.told, self.keep_best = level, model, told, keep_best
        self.journal, self.parts, self.first_told = journal, 0, 0
        self.settings, self.iterations = settings, settings.iterations[level.number]
        self.unit = min(model.geometry.spacing)
        given = level.number == 0 and settings.network is not None
        self.warmup = round(settings.network_warmup * self.iterations) if given else 0
        #: Iterations that were done before the present ones: the level may be done twice.
        self.before = 0
        self.best: tuple[float, dict[str, Tensor]] | None = None
        self.losses: list[float] = []
        self.similarities: list[float] = []
        #: Iteration, learning rate, and similarity and loss on the device, of what nobody was told yet.
        self.measured: list[tuple[int, float, Tensor]] = []
        #: Whether the level was worth nothing and the field is what it was before.
        self.returned = False

    def run(self) -> str:
        """Do all iterations.

        Returns
        -------
        str
            What ended them.
        """
        first = self.warmup > 0 and self.settings.network_above == 0
        stop = self._train_both() if first else self._train_control_points(0)
        if stop == CANCELLED or self.level.number:
            return stop
        # Control points that lost gave their start back: no motion is left to tell by.
        motion = math.inf if self.returned else self._motion()
        if self.search is not None and not first:
            called = self._search_is_called_for(motion) or self.search.finds_missed(self.model)
            ended = self._try_search(self.search) if called else None
            if ended is not None:
                return ended
        if self.warmup and not first and motion > self.settings.network_above:
            return self._try_network(stop)
        return stop

    def _train_both(self) -> str:
        """The network, then the control points."""
        network = self.model.add_network()
        if self._train_network(network) == CANCELLED:
            return CANCELLED
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        return DONE if self.warmup == self.iterations else self._train_control_points(self.warmup)

    def _try_search(self, search: Search) -> str | None:
        """The level once more, from what a search finds; what ended it where that field is kept, else None."""
        velocity, level, returned = self.model.velocity, self.level, self.returned
        alone, begun = velocity.control_points.detach().clone(), search.begin(self.model)
        if begun is None:
            return None
        self.level = begun
        self.before, self.best, self.returned = self.before + self.iterations, None, False
        stop = self._train_control_points(0)
        # What the level cannot see is judged by the one that shows it. Else both are judged at the positions and in the
        # weights of the better evidence.
        judge = search.judge or self.level
        found, left = velocity.control_points.detach().clone(), self._left(judge)
        with torch.no_grad():
            velocity.control_points.copy_(alone)
        if left < (1 - SEARCH_GAIN) * self._left(judge):
            search.keep()
            with torch.no_grad():
                velocity.control_points.copy_(found)
            return stop
        self.level, self.returned = level, returned
        return CANCELLED if stop == CANCELLED else None

    def _try_network(self, stop: str) -> str:
        """The level once more, with a network; the field with the lower loss is kept."""
        velocity = self.model.velocity
        loss, alone, returned = self._loss(), velocity.control_points.detach().clone(), self.returned
        with torch.no_grad():
            velocity.control_points.zero_()
        self.before, self.best, self.returned = self.before + self.iterations, None, False
        again = self._train_both()
        if again != CANCELLED and self._loss() < loss:
            return again
        velocity.drop_network()
        with torch.no_grad():
            velocity.control_points.copy_(alone)
        self.returned = returned
        return CANCELLED if again == CANCELLED else stop

    def _loss(self) -> float:
        with torch.no_grad():
            return float(self.level.loss(self.model, 0)[1])

    def _left(self, level: Level) -> float:
        """The loss, in which what is unlike counts twice: what slides along a wall has to pay for it."""
        with torch.no_grad():
            similarity, loss = _read(*level.loss(self.model, 0))
            return loss + 1 - similarity

    def _motion(self, share: float = 0.95) -> float:
        """A percentile of the displacements of the nodes, in voxels of the level."""
        model = self.model
        with torch.no_grad():
            length = (model.displaced(model.velocity()) * model.spacing).norm(dim=0).flatten()
        voxel = self.settings.shrink_factors[self.level.number] * self.unit
        return float(length.kthvalue(max(1, round(share * len(length)))).values) / voxel

    def _search_is_called_for(self, motion: float) -> bool:
        """Where things moved far, a part of them alone, where there was little evidence to begin with, or landmarks."""
        if self.settings.search == "always" or self.level.factor > 1 or motion > FAR:
            return True
        if self.level.known is not None and self.level.known.landmarks is not None:
            return True  # who gives them holds that the images alone do not tell enough
        part = self._motion(0.99)
        return part > FAR and part > PART * self._motion(0.9)

    def _train_network(self, network: nn.Module) -> str:
        """The network alone, its control points at rest; no loss is ever above that of the start."""
        velocity = self.model.velocity
        parameters = list(network.parameters())
        velocity.control_points.requires_grad_(False)
        ended = self._done_before()
        if ended is not None:
            return ended
        similarity, evaluation, device = 0.0, 0, velocity.control_points.device
        begin = self._network_taken_up()
        if begin is not None:
            evaluation = begin.evaluations

        def put(x: Tensor) -> None:
            vector_to_parameters(x.float().to(device), parameters)

        def loss_and_gradient(x: Tensor) -> tuple[float, Tensor]:
            nonlocal similarity
            put(x)
            for p in parameters:
                p.grad = None
            value, loss = self.level.loss(self.model, 0)
            loss.backward()
            (similarity, now), gradients = _read(value, loss), [p.grad for p in parameters if p.grad is not None]
            return now, torch.cat([g.reshape(-1) for g in gradients]).double().cpu()

        def reach(a: Tensor, b: Tensor) -> float:
            ends = []
            with torch.no_grad():
                for x in (a, b):
                    put(x)
                    ends.append(velocity.network_at_nodes())
                return float((ends[1] - ends[0]).norm(dim=1).max())

        def goes_on(loss: float) -> bool:
            nonlocal evaluation
            rate = self._learning_rate(evaluation)
            now = Iteration(self.level.number, self.before + evaluation, similarity, loss, rate)
            evaluation += 1
            return self.told.goes_on(now)

        def tell(position: Position) -> None:
            if self.journal.due():
                self.journal.keep(RUNNING, partial(self._network_under_way, position))

        unit = self.unit * self.settings.learning_rates[self.level.number]
        threshold = self.settings.convergence_threshold / self.settings.convergence_window  # of a single step
        found = minimise(
            loss_and_gradient, parameters_to_vector(parameters).detach().double().cpu(), reach,
            radius=self.settings.network_radius * unit, most_radius=8 * self.settings.network_radius * unit,
            evaluations=self.warmup, tolerance=max(NETWORK_TOLERANCE, threshold), goes_on=goes_on,
            begin=begin, tell=tell,
        )  # fmt: skip
        with torch.no_grad():
            put(found.x)
        return CANCELLED if found.stop == "cancelled" else self._part_ends(DONE)

    def _network_under_way(self, position: Position) -> Entry:
        """The training of the network before an evaluation."""
        numbers = {name: getattr(position, name) for name in _NUMBERS}
        arrays = {name: getattr(position, name) for name in _VECTORS}
        for k, (change, turn) in enumerate(position.pairs):
            arrays |= {f"change.{k}": change, f"turn.{k}": turn}
        trace = as_rows(self.told.trace[self.first_told :])
        return Entry(numbers | {"pairs": len(position.pairs), "trace": trace}, copied(arrays))

    def _network_taken_up(self) -> Position | None:
        """Where the training of the network was, None where none was under way."""
        entry = self.journal.recalled(RUNNING)
        if entry is None:
            return None
        arrays = entry.arrays
        pairs = tuple((arrays[f"change.{k}"], arrays[f"turn.{k}"]) for k in range(entry.values["pairs"]))
        self.told.trace.extend(rows_as_trace(entry.values["trace"]))
        del self.journal.entries[RUNNING]
        parts: dict[str, Any] = {n: arrays[n] for n in _VECTORS} | {n: entry.values[n] for n in _NUMBERS}
        return Position(**parts, pairs=pairs)

    def _train_control_points(self, first: int) -> str:
        """The control points alone, from the iteration `first` on."""
        points, stop = self.model.velocity.control_points, DONE
        done = self._done_before()
        if done is not None:
            points.requires_grad_(True)
            return done
        optimiser = ops.Adam([points], self.settings.betas, self.level.epsilon, self.level.threads)
        self.losses, self.similarities = [], []
        start = points.detach().clone()
        begin = self._taken_up(optimiser, start, first)
        points.requires_grad_(True)
        iterations = iterations_of(self.level, self.model, optimiser)
        for iteration in range(begin, self.iterations):
            if iteration > begin and self.journal.due():
                self.journal.keep(RUNNING, partial(self._under_way, optimiser, start, iteration))
            rate = self._learning_rate(iteration)
            # The numbers stay on the device.
            numbers = iterations.measure(iteration, iteration - first)
            self.measured.append((iteration + self.before, rate, numbers))
            # A GPU is waited for where somebody has to know.
            if (iteration == self.iterations - 1 or self._asked) and not self._tell():
                if self.best is not None:
                    self.model.velocity.load_state_dict(self.best[1])
                return CANCELLED
            iterations.step(rate * self.unit)
            if _converged(self.losses, self.settings):
                stop = CONVERGED
                break
        # By the similarity, which two maps can be compared by: a few steps leave a roughness that the loss charges for.
        # The last one is that before the last step; only where it leaves a doubt another evaluation is worth its time.
        if len(self.similarities) < 3 or not self.similarities[-1] >= self.similarities[0]:
            with torch.no_grad():
                end = float(self.level.similarity_of(self.model))
                if not end >= self.similarities[0]:
                    points.copy_(start)
                    self.returned = True
        return self._part_ends(stop)

    def _done_before(self) -> str | None:
        """What ended the part that begins now, where it was done before; field and trace are as it left them."""
        self.parts, self.first_told = self.parts + 1, len(self.told.trace)
        entry = self.journal.recalled(f"part {self.parts}")
        if entry is None:
            return None
        load(self.model.velocity, entry, "field.")
        self.told.trace.extend(rows_as_trace(entry.values["trace"]))
        self.returned = entry.values["returned"]
        return str(entry.values["stop"])

    def _part_ends(self, stop: str) -> str:
        """Keep what a part ended with; what ended it."""
        self.journal.keep(
            f"part {self.parts}",
            lambda: Entry(
                {"stop": stop, "returned": self.returned, "trace": as_rows(self.told.trace[self.first_told :])},
                copied(self.model.velocity.state_dict(), "field."),
            ),
        )
        return stop

    def _under_way(self, optimiser: ops.Adam, start: Tensor, iteration: int) -> Entry:
        """The control points before an iteration."""
        best = self.best
        return Entry(
            {
                "iteration": iteration,
                "count": optimiser.count,
                "losses": list(self.losses),
                "similarities": list(self.similarities),
                "best": None if best is None else best[0],
                "trace": as_rows(self.told.trace[self.first_told :]),
            },
            copied(self.model.velocity.state_dict(), "field.")
            | copied({"start": start})
            | copied({str(k): t for k, t in enumerate(optimiser.first)}, "first.")
            | copied({str(k): t for k, t in enumerate(optimiser.second)}, "second.")
            | ({} if best is None else copied(best[1], "best.")),
        )

    def _taken_up(self, optimiser: ops.Adam, start: Tensor, first: int) -> int:
        """The iteration to go on with: that which was under way, else the first."""
        entry = self.journal.recalled(RUNNING)
        if entry is None:
            return first
        load(self.model.velocity, entry, "field.")
        load_list(optimiser.first, entry, "first.")
        load_list(optimiser.second, entry, "second.")
        start.copy_(entry.arrays["start"])
        values = entry.values
        optimiser.count, self.losses, self.similarities = values["count"], values["losses"], values["similarities"]
        if values["best"] is not None:
            device = start.device
            kept = {k: v.to(device) for k, v in entry.arrays.items() if k.startswith("best.")}
            self.best = values["best"], {k.removeprefix("best."): v for k, v in kept.items()}
        self.told.trace.extend(rows_as_trace(values["trace"]))
        del self.journal.entries[RUNNING]
        return int(values["iteration"])

    def _learning_rate(self, iteration: int) -> float:
        """In voxels of the fixed image along its finest axis."""
        share = iteration / max(1, self.iterations - 1)
        return self.settings.learning_rates[self.level.number] * (1 - (1 - self.settings.learning_rate_end) * share)

    @property
    def _asked(self) -> bool:
        """Whether the numbers of an iteration are needed before the next one."""
        return self.keep_best or self.settings.convergence_threshold > 0 or self.journal.write is not None

    def _tell(self) -> bool:
        """Read what was measured, and tell of it; whether there shall be another iteration."""
        measured, self.measured = self.measured, []
        numbers = torch.stack([values for *_, values in measured]).cpu().tolist()
        goes_on = True
        for (iteration, rate, _), (similarity, loss) in zip(measured, numbers, strict=True):
            self.losses.append(loss)
            self.similarities.append(similarity)
            if self.keep_best and (self.best is None or loss < self.best[0]):
                self.best = loss, {k: p.detach().clone() for k, p in self.model.velocity.state_dict().items()}
            goes_on = self.told.goes_on(Iteration(self.level.number, iteration, similarity, loss, rate))
        return goes_on


def _read(similarity: Tensor, loss: Tensor) -> tuple[float, float]:
    """Both numbers, for which a GPU is waited for once."""
    a, b = torch.stack([similarity.detach(), loss.detach()]).cpu().tolist()
    return a, b


def _converged(losses: list[float], settings: Settings) -> bool:
    w = settings.convergence_window
    if settings.convergence_threshold <= 0 or len(losses) < 2 * w:
        return False
    return float(np.mean(losses[-2 * w : -w]) - np.mean(losses[-w:])) < settings.convergence_threshold
