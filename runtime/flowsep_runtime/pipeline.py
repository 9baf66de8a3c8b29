"""The seven stages of FlowSep on a backend, with numpy arrays in and out.

The same methods, names and shapes as the PyTorch reference, so that any stage of one can be checked against
the other. Arithmetic: docs/model.md; what all steps of a solver share (a query's keys and values, the
mixture's share of the first convolution, the time features of a schedule) is computed once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from flowsep_runtime.arrays import Array, Floats
from flowsep_runtime.backends import (
    Arithmetic,
    Backend,
    DeviceBackend,
    Precision,
    Schedule,
    SolverLoop,
    open_chosen,
)
from flowsep_runtime.bundle.hub import located
from flowsep_runtime.bundle.manifest import STAGES, Manifest
from flowsep_runtime.bundle.stores import without_links
from flowsep_runtime.device_pipeline import (
    Clip,
    ClipResult,
    StageContext,
    StepProgress,
    loops_of,
    run_on_device,
    share_of,
)
from flowsep_runtime.loading import load_on_two_threads
from flowsep_runtime.processors import usable_processors
from flowsep_runtime.solvers import guided, solver_taking
from flowsep_runtime.stage_arrays import (
    QueryFeatures,
    floats,
    integers,
    latent_of,
    log_mel_of,
    of_batch,
    waveform_of,
)


class Pipeline:
    """A bundle on a backend. B is the batch, T mel frames (samples / 160, a multiple of 32), t = T / 4
    latent frames; numbers are the published ones, `manifest.model` holds the bundle's own.

    Wrong shapes raise ValueError, a backend that fails `BackendError`.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        backend: Backend,
        precision: Arithmetic = "exact",
        low_memory: bool = False,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.backend = backend
        self.precision: Arithmetic = precision
        self.low_memory = low_memory
        self._opened_with: tuple[int | None, bool] | None = None  # threads and cache, for a copy

    @classmethod
    def load(
        cls,
        bundle_dir: str | os.PathLike[str],
        backend: str = "auto",
        precision: Precision = "exact",
        threads: int | None = None,
        low_memory: bool = False,
        cache: bool = True,
    ) -> Pipeline:
        """Checks a bundle and opens it; graphs are loaded when they are first used.

        Args:
            bundle_dir: The folder that flowsep-export wrote, or, in a string, `owner/name` on the Hugging
                Face hub, which is fetched if it is not in the hub's cache.
            backend: A name of `backends.BACKENDS` or "auto".
            precision: "exact" (float32 arithmetic), "fast" (the backend's quickest whose error is known to be
                small) or "auto" ("fast" where this machine has such an arithmetic); `precision` of the
                pipeline is the choice.
            threads: Threads of a backend on the CPU; None leaves it to the backend.
            low_memory: Keep the graphs of one stage at a time, so that the peak is that of the largest
                stage; they are loaded again when they are next wanted.
            cache: Whether the backend may keep compiled graphs and the results of its checks in the user's
                cache folder.

        Raises:
            BundleError: If it is not a bundle or was changed.
            OptionError: If the backend cannot run here.
        """
        folder = located(bundle_dir)
        manifest = Manifest.read(folder)
        # Graphs are loaded later, and the working folder may be another by then.
        folder = without_links(folder.absolute())
        opened, arithmetic = open_chosen(backend, folder, manifest, precision, threads, cache)
        pipeline = cls(folder, manifest, opened, arithmetic, low_memory)
        pipeline._opened_with = (threads, cache)
        return pipeline

    def __reduce__(self) -> tuple[Callable[..., Pipeline], tuple[object, ...]]:
        """Opens the bundle again where the copy is wanted, such as in the process of a pool: on the same
        backend, in the same arithmetic.

        Raises:
            TypeError: If it was not opened by `load`.
        """
        if self._opened_with is None:
            raise TypeError("A Pipeline that was not opened by Pipeline.load cannot be copied.")
        threads, cache = self._opened_with
        return type(self).load, (
            self.folder,
            self.backend.name,
            self.precision,
            threads,
            self.low_memory,
            cache,
        )

    def load_stage(self, stage: str) -> None:
        """Makes the graphs behind a stage method ready, so that its first call takes no longer than the
        next."""
        for graph in STAGES[stage]:
            self._leave_other_stages(graph)
            self.backend.load(graph)

    def load_ahead(self, stages: Sequence[str]) -> None:
        """Makes stages ready on two threads, in their order.

        Returns at once where the processors suffice for loading and working. On two processors the work would
        only take the loading's time: this returns when all is loaded. On one processor, on a device and with
        low memory there is nothing to gain: this does nothing. What cannot be loaded says so when it is used.
        """
        processors = usable_processors()
        if self.low_memory or isinstance(self.backend, DeviceBackend) or processors < 2:
            return
        graphs = [graph for stage in stages for graph in STAGES[stage]]
        load_on_two_threads(self.backend.load, graphs, wait=processors == 2)

    def free_stage(self, stage: str) -> None:
        """Gives back the memory of the graphs behind a stage method; the next call loads them again."""
        for graph in STAGES[stage]:
            self.backend.free(graph)

    def free(self) -> None:
        """Gives back the memory of all graphs."""
        for graph in self.manifest.graphs:
            self.backend.free(graph)

    def log_mel(self, waveform: ArrayLike) -> Floats:
        """Normalised waveform [B, 160 T] -> log-mel spectrogram [B, T, 64] (docs/model.md#front-end)."""
        return self._run("log_mel", waveform=waveform_of(waveform, self.manifest.model))[0]

    def encode_text(self, input_ids: ArrayLike, attention_mask: ArrayLike) -> Floats:
        """Token ids and 0/1 mask, each [B, 50] -> hidden states [B, 50, D]."""
        ids, mask = integers(input_ids), integers(attention_mask)
        if ids.ndim != 2 or ids.shape[1] != self.manifest.model.text_length or mask.shape != ids.shape:
            raise ValueError(
                f"ids and mask must be [batch, {self.manifest.model.text_length}]: {ids.shape} {mask.shape}"
            )
        return self._run("encode_text", input_ids=ids, attention_mask=mask)[0]

    def encode_mixture(self, log_mel: ArrayLike) -> tuple[Floats, Floats]:
        """Log-mel [B, T, 64] -> posterior mean and standard deviation, each [B, 8, T/4, 16], times
        `scale_factor`."""
        mean, std = self._run("encode_mixture", log_mel=log_mel_of(log_mel, self.manifest.model))
        return mean, std

    def velocity(
        self, x: ArrayLike, t: ArrayLike, mixture_latent: ArrayLike, text: ArrayLike, mask: ArrayLike
    ) -> Floats:
        """The velocity network (docs/model.md#velocity-network) at one time.

        Args:
            x: State [B, 8, t, 16].
            t: Time in [0, 1], a scalar or [B].
            mixture_latent: [B, 8, t, 16], or of batch 1 for any B.
            text: Hidden states [B, 50, D], or of batch 1.
            mask: 0/1 attention mask [B, 50] of any integer, bool or float type, or of batch 1.

        Returns:
            Velocity [B, 8, t, 16].
        """
        state = latent_of(x, self.manifest.model, "x")
        times = floats(t)
        if times.ndim > 1 or (times.ndim == 1 and times.shape[0] not in (1, len(state))):
            raise ValueError(f"t must be a scalar or [batch]: {times.shape}")
        features = self.time_features(np.atleast_1d(times))
        mixture, query = self._invariants(len(state), state.shape[2], mixture_latent, text, mask)
        return self.velocity_from(state, features, mixture, query)

    def query_features(self, text: ArrayLike, mask: ArrayLike) -> QueryFeatures:
        """Hidden states [B, 50, D] and mask [B, 50] -> their keys and values, for `velocity_from`."""
        hidden, ones = floats(text), floats(mask)
        model = self.manifest.model
        if hidden.ndim != 3 or hidden.shape[1:] != (model.text_length, model.text_width):
            raise ValueError(f"text must be [batch, {model.text_length}, {model.text_width}]: {hidden.shape}")
        if ones.shape != hidden.shape[:2]:
            raise ValueError(f"mask must be [batch, {model.text_length}] with text's batch: {ones.shape}")
        return QueryFeatures(*self._run("velocity_text", text=hidden, mask=ones))

    def mixture_features(self, mixture_latent: ArrayLike) -> Floats:
        """Mixture latent [B, 8, t, 16] -> its share of the first convolution [B, C, t, 16], for
        `velocity_from`."""
        return self._run(
            "velocity_mixture",
            mixture_latent=latent_of(mixture_latent, self.manifest.model, "mixture_latent"),
        )[0]

    def time_features(self, times: ArrayLike) -> Floats:
        """Times [steps] in [0, 1] -> their features [steps, E], for `velocity_from`."""
        return self._run("velocity_time", t=floats(times))[0]

    def velocity_from(
        self, x: Floats, time_features: Floats, mixture_features: Floats, query: QueryFeatures
    ) -> Floats:
        """`velocity` with all done that does not depend on the state: x [B, 8, t, 16], one row of time
        features or B, the others of batch B."""
        return self._run(
            "velocity",
            x=x,
            mixture_features=mixture_features,
            time_features=of_batch(time_features, len(x), "t"),
            keys_values=query.keys_values,
            mask_bias=query.mask_bias,
        )[0]

    def solve(
        self,
        noise: ArrayLike,
        mixture_latent: ArrayLike,
        text: ArrayLike,
        mask: ArrayLike,
        steps: int,
        solver: str = "euler",
        progress: StepProgress | None = None,
        guidance: Floats | None = None,
    ) -> Floats:
        """Follows the velocity from noise at t = 0 to a latent at t = 1 (docs/model.md#solver).

        Args:
            noise: Standard normal [B, 8, t, 16].
            mixture_latent, text, mask: As for `velocity`.
            steps: Number of steps, at least 1.
            solver: A name of `solvers.SOLVERS`.
            progress: Called with (steps done, steps) after every step.
            guidance: Scales [B / 2] of `solvers.guided`. Rows of the second half answer the negative queries
                of the first half's rows, from the same noise. None: every row for itself.

        Returns:
            Latent [B, 8, t, 16], still times `scale_factor`; with guidance the first half of it.

        Raises:
            OptionError: If there is no such solver, or it does not take that many steps.
        """
        method = solver_taking(solver, steps)
        x = latent_of(noise, self.manifest.model, "noise")
        time_features = self.time_features(method.times(steps))
        mixture, query = self._invariants(len(x), x.shape[2], mixture_latent, text, mask)
        if isinstance(self.backend, SolverLoop) and guidance is None:
            schedule = Schedule(solver, steps, x, time_features, mixture, query.keys_values, query.mask_bias)
            return self.backend.solve(schedule, progress)

        def velocity(x: Floats, k: int) -> Floats:
            rows = self.velocity_from(x, time_features[k : k + 1], mixture, query)
            if guidance is None:
                return rows
            return np.tile(guided(rows, guidance[:, None, None, None]), (2, 1, 1, 1))

        for done, state in enumerate(method.integrate(velocity, x, steps), 1):
            x = state
            if progress is not None:
                progress(done, steps)
        return x if guidance is None else x[: len(guidance)]

    def decode_latent(self, latent: ArrayLike) -> Floats:
        """Latent [B, 8, T/4, 16], times `scale_factor` -> log-mel [B, T, 64]."""
        return self._run("decode_latent", latent=latent_of(latent, self.manifest.model, "latent"))[0]

    def vocode(self, log_mel: ArrayLike) -> Floats:
        """Log-mel [B, T, 64] -> waveform [B, 160 T + 32] at 16 kHz, in [-1, 1]."""
        return self._run("vocode", log_mel=log_mel_of(log_mel, self.manifest.model))[0]

    def generate(
        self,
        clip: Clip,
        steps: int,
        solver: str = "euler",
        progress: StepProgress | None = None,
        stage: StageContext = lambda name: nullcontext(),
    ) -> Floats:
        """Waveforms [R, 160 T + 32] of the targets, at 16 kHz and in [-1, 1]: all of `run`."""
        return self.run(clip, steps, solver, progress, stage, log_mels=False).waveform

    def run(
        self,
        clip: Clip,
        steps: int,
        solver: str = "euler",
        progress: StepProgress | None = None,
        stage: StageContext = lambda name: nullcontext(),
        vocode: bool = True,
        log_mels: bool = True,
        largest_loop: int | None = None,
    ) -> ClipResult:
        """All stages but for the text's: mixtures' waveforms to targets, one for each of the clip's rows.

        Every mixture is encoded once. On a device, rows go through one loop as far as its batch allows;
        elsewhere as many as there are mixtures.

        Args:
            clip: Normalised waveforms, noise and texts; see there for shapes.
            steps, solver: As for `solve`.
            progress: Called with (steps done, steps) as all rows together advance.
            stage: `stage(name)` is entered for every stage's work.
            vocode: False to leave the vocoder out.
            log_mels: False to leave the log-mel spectrograms where they are; in the host's memory they are
                given in any case.
            largest_loop: Rows of a loop on a device at most; None: as many as it takes.
        """
        waveform_of(clip.waveform, self.manifest.model)
        solver_taking(solver, steps)
        backend, pairs = self.backend, 1 if clip.guidance is None else 2
        most = pairs * len(clip.waveform)
        if isinstance(backend, DeviceBackend):
            most = min(backend.loop_batches.most, largest_loop or backend.loop_batches.most)
        loops = loops_of(clip, most)
        # With low memory every stage's arrays go with its graphs: the next one gets them from the host.
        if isinstance(backend, DeviceBackend) and not self.low_memory and (pairs == 1 or backend.guides):
            return run_on_device(backend, clip, loops, steps, solver, progress, stage, vocode, log_mels)
        with stage("log_mel"):
            mixture = self.log_mel(clip.waveform)
        with stage("encode_mixture"):
            mean, std = self.encode_mixture(mixture)
            heard = mean + std * clip.posterior_noise
        with stage("solve"):
            latents = []
            for number, rows in enumerate(loops):
                told, given = share_of(progress, number, len(loops)), (rows.text, rows.mask, steps, solver)
                latents.append(self.solve(rows.noise, heard[rows.mixtures], *given, told, rows.guidance))
        with stage("decode_latent"):
            targets = [self.decode_latent(latent) for latent in latents]
        waveforms = [np.zeros((len(target), 0), np.float32) for target in targets]
        if vocode:
            with stage("vocode"):
                waveforms = [self.vocode(target) for target in targets]
        return ClipResult(mixture, np.concatenate(targets), np.concatenate(waveforms))

    def _invariants(
        self, batch: int, frames: int, mixture_latent: ArrayLike, text: ArrayLike, mask: ArrayLike
    ) -> tuple[Floats, QueryFeatures]:
        mixture = latent_of(mixture_latent, self.manifest.model, "mixture_latent")
        if mixture.shape[2] != frames:
            raise ValueError(f"mixture_latent has {mixture.shape[2]} frames and x {frames}")
        query = self.query_features(text, mask)
        return (
            of_batch(self.mixture_features(mixture), batch, "mixture_latent"),
            QueryFeatures(
                of_batch(query.keys_values, batch, "text"), of_batch(query.mask_bias, batch, "mask")
            ),
        )

    def _leave_other_stages(self, graph: str) -> None:
        if self.low_memory:
            for stage, graphs in STAGES.items():
                if graph not in graphs:
                    self.free_stage(stage)

    def _run(self, graph: str, **inputs: Array) -> tuple[Floats, ...]:
        self._leave_other_stages(graph)
        outputs = self.backend.run(
            graph, {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        )
        return tuple(outputs[tensor.name] for tensor in self.manifest.graphs[graph].outputs)
