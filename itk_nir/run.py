"""One registration: its stages, one after the other, and what is told of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from itk_nir.checkpoint import chosen_metrics, with_chosen_metrics
from itk_nir.engine import ops
from itk_nir.engine.bias import Bias, Biases, believed_biases, biases_between, without_biases, without_trends
from itk_nir.engine.choice import (
    ENOUGH_ITERATIONS,
    SAME,
    Choice,
    choose_metric,
    doubts_of_one_contrast,
    gained_in_detail,
    once_aligned,
    unlike_after_all,
)
from itk_nir.engine.deformable import UNALIKE, Alike
from itk_nir.engine.descent import DONE
from itk_nir.engine.evened import IN_EVEN_LIGHT, choice_in_even_light, evened, start_in_even_light
from itk_nir.engine.evidence import Comparison
from itk_nir.engine.execution import device_name, peak_device_memory_mb, peak_memory_mb, reset_peak_device_memory
from itk_nir.engine.images import Pair
from itk_nir.engine.journal import LINEAR, Entry, Journal
from itk_nir.engine.linear import BY_WHOLE_IMAGES, optimise_linear
from itk_nir.engine.linear_metrics import without_descriptors
from itk_nir.engine.linear_search import Start
from itk_nir.engine.metrics import AUTO, NONE, channel_metrics, look_at_images, mean_of, of_one_contrast
from itk_nir.engine.progress import Callback, Measures, Optimised
from itk_nir.engine.regions import at_rest
from itk_nir.engine.resolution import Displacement
from itk_nir.engine.sampling import SampledField, sample_field
from itk_nir.engine.search import CONSISTENT, find_matches
from itk_nir.engine.shades import shades_between
from itk_nir.engine.unchanged import free_to_move
from itk_nir.findings import texts
from itk_nir.identity import inputs_soon
from itk_nir.neural_field import NeuralField
from itk_nir.problem import Problem
from itk_nir.report import Report, as_json
from itk_nir.result import RegistrationResult
from itk_nir.stored_axes import for_engine, restriction
from itk_nir.telling import Listener, metric_name, not_finite, on_biases, on_landmarks, on_volume, versions
from itk_nir.transforms.model import LinearTransform
from itk_nir.verdict import Verdict, against_deformation, judge, worse

if TYPE_CHECKING:
    from itk_nir.engine.metrics import Metric
    from itk_nir.settings import Settings

_log = logging.getLogger("itk_nir")

#: The share of what images of one contrast are short of likeness that a deformation must gain.
LEAST_GAIN = 0.01


class Run:
    """One registration: linear stage, deformable stage, sampling, verdict; what it took is in its report.

    Parameters
    ----------
    problem : Problem
        What is registered.
    callback : callable or None
        The caller's own, see `itk_nir.register`.
    journal : Journal
        Of what was done before, and for what is done.
    call : dict
        How `itk_nir.register` was called, for the report.
    """

    def __init__(self, problem: Problem, callback: Callback | None, journal: Journal, call: dict[str, Any]) -> None:
        self.problem, self.journal, self.call = problem, journal, call
        self.listener = Listener(callback, problem.frame)
        self.frame, self.inputs = problem.frame, inputs_soon(problem)
        self.seconds = {"read": time.perf_counter() - problem.clock}
        self.notes, self.doubts, self.remarks = list(texts(problem.findings)), list(problem.doubts), list[str]()
        self.of_linear: tuple[str, ...] = ()  # doubts of the linear stage, which may be done once more
        self.settings, self.reason, self.least_gain = problem.settings, "", 0.0
        self.cancelled, self.told_before = False, 0
        self.start: Start | None = None
        self.evened = False  # whether the images are seen without what changes slowly over them
        #: What ``metric="auto"`` stands for.
        self.choice: Choice | None = None
        #: The same, where the first level showed that images of one contrast are none.
        self.after_all: Choice | None = None
        self.similarity_linear: float | None = None
        self.biases: Biases = ()  # smooth factors that the images are divided by
        _log.debug(
            "registering %s onto %s: preset %s, device %s, %d threads, instruction set %s",
            problem.moving.name, problem.fixed.name, problem.settings.preset, problem.device, problem.threads,
            ops.instruction_set(),
        )  # fmt: skip

    def result(self) -> RegistrationResult:
        """Run all stages.

        Returns
        -------
        RegistrationResult
        """
        problem = self.problem
        reset_peak_device_memory(problem.device)
        began = pair = self._with_what_changed(problem.pair())
        self.landmarks = None if pair.known is None else pair.known.landmarks
        self.notes.extend(on_landmarks(self.landmarks))
        pair = self._with_linear(pair)
        if not problem.deformable:
            self._compare(began, pair, None)
            affine = LinearTransform(self.frame.physical_matrix(pair.linear))
            stop = "cancelled" if self.cancelled else "all iterations done"
            report = self._report(stop=stop, similarity=self.similarity_linear, affine_matrix=affine.matrix.tolist())
            return self._with_what_was_given(
                RegistrationResult(problem.fixed, problem.moving, affine, initial=problem.tail, report=report)
            )

        done = self._deformable(pair)
        if done.stop == UNALIKE:
            pair = self._as_unlike(began)
            done = self._deformable(pair)
        affine = LinearTransform(self.frame.physical_matrix(pair.linear))
        ops.release_memory()  # many small arrays are done with, a few large ones follow
        done = self._compare(began, pair, done)
        sampled = sample_field(
            done.field, problem.settings.sampling, pair.counted, problem.target(pair), self.frame,
        )  # fmt: skip
        self._took("sampling")
        report = self._report(
            sampled,
            stop=done.stop,
            trace=done.trace,
            returned_levels=done.returned_levels,
            search=done.search,
            similarity_start=done.similarity_start,
            similarity=done.similarity,
        )
        about = {"preset": report.preset, "seed": report.seed, "device": report.device, "versions": report.versions}
        kind = problem.settings.deformable.kind
        trained = NeuralField(kind, done.field, affine, self.frame, problem.tail, about | {"settings": report.settings})
        self.listener.tell_end(done, problem.clock)
        return self._with_what_was_given(
            RegistrationResult.of_field(problem.fixed, problem.moving, trained, sampled, report)
        )

    def _with_what_changed(self, pair: Pair) -> Pair:
        """The pair, with where the images differ by more than noise, where that is known."""
        settings = self.settings
        metrics = settings.deformable.metric, settings.linear.linear_metric
        # A linear stage alone takes samples that never repeat: noise does not move it.
        held = self.problem.deformable and getattr(settings.deformable, "hold_unchanged", False)
        if not held or NONE in metrics:
            return pair
        free = free_to_move(pair)
        if free is not None:
            what = "nothing is moved" if not bool(free.any()) else "only what differs by more is moved, and around it"
            self.remarks.append(f"the images lie on each other and differ by noise alone: {what}")
        return replace(pair, free=free)

    def _with_linear(self, pair: Pair) -> Pair:
        """The pair with the map of the linear stage, and the metrics settled; or as they were in a run before."""
        entry, self.told_before = self.journal.recalled(LINEAR), len(self.notes)
        if entry is not None:
            self._recall(entry.values)
            self.metrics = self._channel_metrics(pair, self.settings.deformable.metric)
            return replace(self._seen(without_biases(pair, self.biases)), linear=np.array(entry.values["matrix"]))
        aligned = self._begun(pair)
        if not self.cancelled and pair.free is None and look_at_images(self.metrics):
            aligned = self._without_biases(pair, aligned)
        return self._keep(aligned)

    def _begun(self, pair: Pair, start: Start | None = None) -> Pair:
        """The pair with the map of the linear stage, and the metrics settled, from the beginning."""
        del self.notes[self.told_before :]
        self.settings, self.choice, self.reason, self.least_gain = self.problem.settings, None, "", 0.0
        self.evened, self.start = False, start or self._start(pair)
        self._choose(pair if self.start is None else replace(pair, linear=pair.linear @ self.start.matrix))
        return self._aligned(self._seen(pair), self.start)

    def _without_biases(self, pair: Pair, aligned: Pair) -> Pair:
        """The aligned pair; if there are smooth factors between or over the images, aligned once more without."""
        start, bare = self.start, replace(pair, linear=aligned.linear)
        found = biases_between(bare, self.problem.threads)
        believed = believed_biases(bare, found, self.problem.threads)

        def look(pair: Pair) -> Biases:
            return believed_biases(pair, biases_between(pair, self.problem.threads), self.problem.threads)

        if start is not None and not self.evened and any(bias is not None and not bias.agrees for bias in found):
            # They may have turned the images wrongly. Each without its own trend, these find their way.
            upright = replace(pair, linear=self._begun(without_trends(pair)).linear)
            if self.cancelled:
                return aligned
            believed = look(upright)
            start = self.start if believed else start
            aligned = aligned if believed else self._begun(pair, start)
        if not believed:
            return self._without_shades(pair, aligned, lambda p: self._begun(p, start))
        return self._divided(pair, believed, lambda p: self._begun(p, start), look)

    def _without_shades(self, pair: Pair, aligned: Pair, anew: Callable[[Pair], Pair]) -> Pair:
        """The aligned pair; if smooth factors lie over images of unlike contrasts, aligned `anew` without."""
        if self.cancelled or self.evened or of_one_contrast(self.metrics):
            return aligned
        look = partial(shades_between, threads=self.problem.threads)
        found = look(replace(pair, linear=aligned.linear))
        return self._divided(pair, found, anew, look) if found else aligned

    def _divided(self, pair: Pair, found: Biases, anew: Callable[[Pair], Pair], look: Callable[[Pair], Biases]) -> Pair:
        """The pair aligned `anew` without smooth factors, which are looked for once more: they show better then."""
        self.biases, aligned = found, anew(without_biases(pair, found))
        if self.cancelled or self.evened:
            return aligned
        bare = replace(pair, linear=aligned.linear)
        self.biases = look(bare) or found
        return without_biases(bare, self.biases)

    def _aligned(self, pair: Pair, start: Start | None) -> Pair:
        """The pair with the map of the linear stage, by the metrics as they stand."""
        problem = self.problem
        self.metrics = self._channel_metrics(pair, self.settings.deformable.metric)
        # Where most of the image lies where it belongs, a linear map has nothing to do.
        if problem.linear != "none" and pair.free is None:
            aligned = replace(pair, linear=self._linear(pair, start))
            if self.choice is not None and not self.cancelled:
                before = self.choice
                self._settle(once_aligned(before, aligned, problem.threads))
                if self.choice.metric == SAME != before.metric:
                    del self.notes[self.told_before :]
                    return self._aligned(pair, start)
            pair = aligned
        return pair

    def _keep(self, pair: Pair) -> Pair:
        """The very pair, whose linear map and metrics are settled, and kept for a run that takes this one up."""
        if not self.cancelled:
            values = {
                "matrix": pair.linear.tolist(), "similarity": self.similarity_linear, "reason": self.reason,
                "least_gain": self.least_gain, "notes": self.notes[self.told_before :],
                "doubts": list(self.doubts), "doubts of the stage": list(self.of_linear), "remarks": list(self.remarks),
                "evened": self.evened, "biases": [None if b is None else b.as_values() for b in self.biases],
                "chosen": None if self.settings is self.problem.settings else chosen_metrics(self.settings),
            }  # fmt: skip
            self.journal.keep(LINEAR, lambda: Entry(values), write=True)
        return pair

    def _as_unlike(self, unaligned: Pair) -> Pair:
        """The pair aligned anew, as unlike contrasts are, where the first level of a deformation showed that it is."""
        assert self.after_all is not None
        choice, self.biases = self.after_all, ()
        self.journal.forget_parts()
        del self.notes[self.told_before :]
        self._settle(choice)
        # A run that was taken up behind its linear stage has not looked for a start.
        start = self.start or self._start(unaligned)

        def align(pair: Pair) -> Pair:
            return self._aligned(self._seen(pair), start)

        return self._keep(self._without_shades(unaligned, align(unaligned), align))

    def _seen(self, pair: Pair) -> Pair:
        """The images, without what changes slowly over them where that is left out."""
        return evened(pair, self.problem.threads) if self.evened else pair

    def _recall(self, values: dict[str, Any]) -> None:
        """What the linear stage of a run before found."""
        self.similarity_linear, self.reason = values["similarity"], values["reason"]
        self.least_gain, self.evened = values["least_gain"], values["evened"]
        self.notes.extend(values["notes"])
        self.doubts, self.remarks = list(values["doubts"]), list(values["remarks"])
        self.of_linear = tuple(values["doubts of the stage"])
        self.biases = tuple(None if b is None else Bias.of_values(b) for b in values["biases"])
        if values["chosen"] is not None:
            self.settings = with_chosen_metrics(self.settings, values["chosen"])

    def _with_what_was_given(self, result: RegistrationResult) -> RegistrationResult:
        """The result with what the warped image needs, and with what became of landmarks and labels in its report."""
        given, problem = self.problem.given, self.problem
        values = tuple(m for _, m in problem.more) if problem.moving.components > 1 else ()
        report = result.report
        if given is not None:
            believed = np.ones(0, bool) if self.landmarks is None else self.landmarks.believed
            report = given.reported(report, believed, problem.start, result.mapping, problem.threads)
        return replace(result, moving_values=values, fill=problem.fill, report=report)

    def _start(self, pair: Pair) -> Start | None:
        """Where the linear stage begins; None where it begins as the images lie, or there is none."""
        problem = self.problem
        if problem.linear == "none" or problem.start is not None or pair.free is not None:
            return None
        settings = self._for_engine
        found = start_in_even_light(
            pair, problem.linear, settings.linear, images=settings.linear.linear_metric != NONE
            and look_at_images(self._channel_metrics(pair, settings.deformable.metric)), threads=problem.threads,
            callback=self.listener.share(0.0, 0.05), clock=problem.clock, restrict=restriction(settings),
            alone=not problem.deformable,
        )  # fmt: skip
        self.cancelled = found.cancelled
        # A metric that was asked for by its name is one of the images as they are.
        self.evened |= found.evened and settings.deformable.metric == AUTO
        return found

    def _choose(self, pair: Pair) -> None:
        """Settle what ``metric="auto"`` stands for."""
        chosen = self.settings.deformable
        if not isinstance(chosen.metric, str) or chosen.metric != AUTO:
            return
        found = None if self.evened else choose_metric(pair, self.problem.threads)
        choice, self.evened = choice_in_even_light(pair, found, self.problem.threads)
        pair = self._seen(pair)
        if choice.little_told and getattr(chosen, "search", "never") != "never":
            # Far apart, images of one contrast look as unlike ones do.
            matches = find_matches(pair, False, self.problem.threads, restriction(self._for_engine))
            again = choose_metric(pair, self.problem.threads, matches)
            if again.metric == SAME and matches.consistent >= CONSISTENT:
                choice = again
        self._settle(choice)

    def _settle(self, choice: Choice) -> None:
        """Take what was chosen, but for the metric of a linear stage that has been named."""
        chosen, linear = self.problem.settings.deformable, self.problem.settings.linear
        smoothness = tuple(choice.smoothness * w for w in chosen.smoothness)
        chosen = replace(chosen, metric=choice.metric, smoothness=smoothness)
        if linear.linear_metric == "same":
            linear = replace(linear, linear_metric=choice.linear_metric)
        self.settings = replace(self.settings, deformable=chosen, linear=linear)
        self.choice, self.reason, self.least_gain = choice, choice.reason, choice.least_gain
        _log.debug("metric %s: %s", choice.metric, choice.reason)

    def _alike(self, pair: Pair) -> Alike | None:
        """Whether the first level makes images alike that ``metric="auto"`` took for one contrast."""
        given, chosen = self.problem.settings.deformable, self.settings.deformable
        if given.metric != AUTO or chosen.metric != SAME or pair.known is not None:
            return None
        if max(chosen.iterations[:1]) < ENOUGH_ITERATIONS:
            return None

        def alike(similarity: float, field: Displacement) -> bool:
            self.after_all = unlike_after_all(pair, similarity, field, self.problem.threads)
            return self.after_all is None

        return alike

    def _channel_metrics(self, pair: Pair, metric: Any) -> tuple[tuple[float, Metric], ...]:
        """Weight and metric of every channel: the weights hold for both stages."""
        return channel_metrics(metric, getattr(self.settings.deformable, "channel_weights", ()), len(pair.channels))

    def _linear(self, pair: Pair, start: Start | None) -> Any:
        problem, settings = self.problem, self._for_engine
        metric, share = settings.linear.linear_metric, 0.1 if problem.deformable else 1.0
        found = optimise_linear(
            pair,
            problem.linear,
            settings.linear,
            without_descriptors(self.metrics) if metric == "same" else self._channel_metrics(pair, metric),
            start=start,
            threads=problem.threads,
            callback=self.listener.share(0.05, share - 0.05),
            clock=problem.clock,
            restrict=restriction(settings),
            alone=not problem.deformable,
        )
        self.similarity_linear, self.cancelled = found.similarity, found.cancelled
        self.notes.extend(found.notes)
        self.doubts = [d for d in self.doubts if d not in self.of_linear] + list(found.doubts)
        self.of_linear = found.doubts
        self.remarks = [r for r in self.remarks if r != BY_WHOLE_IMAGES] + [BY_WHOLE_IMAGES] * found.by_whole_images
        shape = np.linalg.solve(pair.linear, found.matrix)[:-1, :-1]
        self.notes.extend(on_volume(shape.astype(np.float64), problem.moving.name, problem.fixed.name))
        self._took("linear")
        return found.matrix

    def _deformable(self, pair: Pair) -> Optimised:
        begin = 0.0 if self.problem.linear == "none" else 0.1
        nothing = pair.free is not None and not bool(pair.free.any())
        # One evaluation, then out.
        callback = (lambda _: True) if self.cancelled or nothing else self.listener.share(begin, 0.95 - begin)
        done = self._optimised(pair, callback, None if self.cancelled or nothing else self._alike(pair))
        if self.cancelled or nothing:
            done = at_rest(done, pair)
        done = replace(done, stop=DONE) if nothing and not self.cancelled else done
        self.notes.extend(done.notes)
        self.doubts.extend(done.doubts)
        self._took("deformable")
        return done

    def _optimised(self, pair: Pair, callback: Callback | None, alike: Alike | None = None) -> Optimised:
        """All levels of the deformation; the first alone where it does not make the images alike."""
        more: dict[str, Any] = {} if self.journal.write is None else {"journal": self.journal}
        more |= {} if alike is None else {"alike": alike}
        done: Optimised = self.settings.engine.optimise(
            pair, self._for_engine.deformable, seed=self.problem.seed, threads=self.problem.threads, callback=callback,
            clock=self.problem.clock, **more,
        )  # fmt: skip
        return done

    def _compare(self, began: Pair, pair: Pair, done: Any) -> Any:
        """Take the evidence; where the deformation is worse than none, it is given up."""
        comparison = Comparison(pair, self.metrics, self.problem.threads)
        linear, end = comparison.under(pair.linear, [None, None if done is None else done.field])
        # One map is not to be measured over two sets of positions, as if it were two.
        start = linear if np.array_equal(began.linear, pair.linear) else comparison.under(began.linear, [None])[0]
        if done is not None and done.stop != "cancelled" and pair.free is None:
            given, end = self._given_up(pair, done, linear, end)
            if given is not done and pair.regions:  # which may ask for a displacement all the same
                end = comparison.under(pair.linear, [given.field])[0]
            done = given
        if pair.free is not None and self.problem.linear != "none":
            self.similarity_linear = linear.metric
        self.evidence = {"start": start, "linear": linear, "end": end}
        self.doubts.extend([*not_finite(self.evidence, done), *comparison.chance_in_air(linear, end)])
        field = None if done is None else done.field
        maps = (began.linear, None), (pair.linear, field)
        self.shared = comparison.of(maps) if start is not linear and worse(end, start) else []
        if self.choice is None:  # it was asked for by its name
            self.doubts.extend(doubts_of_one_contrast(began, pair, field, self.metrics, self.problem.threads))
        self.notes.extend([IN_EVEN_LIGHT] if self.evened else [])
        names = self.problem.fixed.name, self.problem.moving.name
        self.notes.extend(on_biases(self.biases, len(pair.channels), *names))
        self._took("verdict")
        return done

    def _given_up(self, pair: Pair, done: Any, linear: Measures, end: Measures) -> tuple[Any, Measures]:
        """No deformation in place of one that is worse, and what is measured then."""
        least, little = self.least_gain * abs(linear.metric), None
        if of_one_contrast(self.metrics):
            # Of 1, which two images of one contrast reach, an image is short of by its flat windows alone.
            least = max(least, LEAST_GAIN * (1 - linear.metric))
        elif pair.known is None:
            # Of chance likeness there is always more to be had: where it leads depends on how the grids lie.
            little = mean_of(self.metrics, "little_evidence")
        gained = end.metric - linear.metric >= least
        gained = gained or gained_in_detail(self.least_gain, done.similarity_start, done.similarity)
        against = against_deformation(linear, end, gained=gained, little_evidence=little)
        if against is None:
            return done, end
        self.doubts.extend(against[0])
        self.remarks.extend(against[1])
        return at_rest(done, pair), linear

    def _judge(self, sampled: SampledField | None) -> Verdict:
        """The verdict, and a warning where it is not good."""
        problem = self.problem
        verdict = judge(
            self.evidence["start"], self.evidence["end"],
            little_evidence=mean_of(self.metrics, "little_evidence"),
            folded_percent=None if sampled is None else sampled.folded_percent,
            inverse_error=None if sampled is None else sampled.inverse_error_mean,
            doubts=tuple(self.doubts),
            remarks=tuple(self.remarks),
            shared=self.shared,
        )  # fmt: skip
        if verdict.grade != "good" and not self.cancelled:
            self.notes.append(f"{problem.moving.name} onto {problem.fixed.name}: {verdict}; check the result")
        return verdict

    @property
    def _for_engine(self) -> Settings:
        """The settings as they stand, for the axes of the engine."""
        return for_engine(self.settings, self.frame.axes)

    def _took(self, stage: str) -> None:
        elapsed = time.perf_counter() - self.problem.clock - sum(self.seconds.values())
        self.seconds[stage] = self.seconds.get(stage, 0.0) + elapsed  # a stage may be done once more
        _log.debug("%s: %.2f s", stage, self.seconds[stage])

    def _report(self, sampled: SampledField | None = None, **measured: Any) -> Report:
        problem, settings = self.problem, self.settings
        verdict = self._judge(sampled)
        if self.cancelled:
            measured["stop"] = "cancelled"
        return Report(
            preset=settings.preset,
            similarity_linear=self.similarity_linear,
            metric=metric_name(settings.deformable.metric),
            metric_reason=self.reason,
            verdict=verdict,
            evidence=self.evidence,
            seed=problem.seed,
            device=device_name(problem.device),
            threads=problem.threads,
            seconds={**self.seconds, "total": time.perf_counter() - problem.clock},
            peak_memory_mb=peak_memory_mb(),
            peak_device_memory_mb=peak_device_memory_mb(problem.device),
            versions=versions(),
            settings={name: as_json(asdict(part)) for name, part in settings.parts.items()},
            inputs=self.inputs(),
            call=self.call,
            warnings=tuple(self.notes),
            **measured,
        )
