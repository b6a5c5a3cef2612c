"""The last hidden states of some prompts' tokens, kept while they are measured, so that no text has to be read again.

Contract: what a model's output layer is given in a forward pass, in; one tensor of states per prompt out. Nothing is
kept of a batch if that is not one state for each row of the logits, or if the batch was begun by an interrupted
process whose steps are not repeated; nor on a device that replays its steps (`capturing`), where hooks do not run.
Whoever needs these states reads the texts again.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from transformers import PreTrainedModel

from nucleoscope.measure import checking

MOST_BYTES = 2**28  # of all states that are kept, at most


class KeptStates:
    """Keeps the states of the ``wanted`` prompts, in this order of importance, with at most ``max_tokens`` each.

    Of each prompt it has the ids of the T measured tokens, and the states (T, d) from which the logits of these tokens
    followed, in the model's data type on the host.
    """

    def __init__(self, model: PreTrainedModel, wanted: Iterable[int], max_tokens: int):
        self.model, self.head = model, model.get_output_embeddings()
        size = max_tokens * getattr(model.config.get_text_config(), "hidden_size", 2**14) * model.dtype.itemsize
        self.wanted = set(list(wanted)[: MOST_BYTES // max(1, size)])
        self.states: dict[int, tuple[list[int], torch.Tensor]] = {}
        self.indices: list[int] = []
        self.caught: list[torch.Tensor | None] = []
        self.sound = False
        self.steps: list[tuple[list[int], torch.Tensor]] = []

    def take(self) -> dict[int, tuple[list[int], torch.Tensor]]:
        """What was kept since the last time."""
        states, self.states = self.states, {}
        return states

    def begin(self, indices: Sequence[int], begun: bool = False) -> None:
        """The next batch has these prompts; of one that was ``begun`` before, the first states will not be seen."""
        self.indices, self.steps = list(indices), []
        self.sound = not begun and self.head is not None and not self.wanted.isdisjoint(indices)

    @contextlib.contextmanager
    def catch(self) -> Iterator[None]:
        """Within the block, what the output layer is given is caught: the states at the last place of each row.

        What `add` has not taken is lost when the next block begins.
        """
        self.caught = []
        if not self.sound:
            yield
            return
        hook = self.head.register_forward_pre_hook(lambda _, given: self.caught.append(_find_last(given)))
        try:
            yield
        finally:
            hook.remove()

    def add(self, logits: torch.Tensor, rows: list[int]) -> None:
        """Keeps the states that were caught with these ``logits`` (B, V), of some ``rows`` of the batch."""
        caught, self.caught = self.caught, []
        if not self.sound:
            return
        complete = bool(caught) and all(each is not None for each in caught)
        states = torch.cat(caught) if complete else None
        sound = states is not None and len(states) == len(logits) and (self.steps or self._is_right(logits, states))
        self.caught = []  # also what `_is_right` has given the output layer
        if not sound:
            self.sound, self.steps = False, []
            return
        places = [place for place, row in enumerate(rows) if self.indices[row] in self.wanted]
        chosen = states.index_select(0, torch.tensor(places, dtype=torch.long, device=states.device))
        self.steps.append(([self.indices[rows[place]] for place in places], chosen))

    def _is_right(self, logits: torch.Tensor, states: torch.Tensor) -> bool:
        """Whether the first and the last row of a batch's first logits are in the order of the states."""
        ends = [0, len(logits) - 1]
        found = self.head(states[ends]).to(logits.device)
        return checking.measure_difference(found, logits[ends]) <= checking.get_tolerance(self.model)

    def finish(self, tokens: Sequence[list[int]]) -> None:
        """The batch is complete: its prompts have texts of these ``tokens``, without what ended them."""
        found: dict[int, list[torch.Tensor]] = {}
        for prompts, states in self.steps:
            for prompt, row in zip(prompts, states, strict=True):
                found.setdefault(prompt, []).append(row)
        for prompt, text in zip(self.indices, tokens, strict=True):
            if text and len(found.get(prompt, ())) >= len(text):
                self.states[prompt] = text, torch.stack(found[prompt][: len(text)]).cpu()
        self.steps = []

    def add_texts(
        self, indices: Sequence[int], tokens: Sequence[list[int]], pieces: Sequence[torch.Tensor | None]
    ) -> None:
        """Keeps the states of a batch of texts, which are read at once: ``pieces`` of them, one text after another."""
        if self.wanted.isdisjoint(indices) or any(piece is None for piece in pieces) or not pieces:
            return
        split = torch.cat(list(pieces)).split([len(text) for text in tokens])
        for prompt, text, states in zip(indices, tokens, split, strict=True):
            if prompt in self.wanted and text:
                self.states[prompt] = text, states.cpu().clone()


def _find_last(given: tuple) -> torch.Tensor | None:
    """The states (B, d) at the last place of each row, if the output layer is given states (B, T, d)."""
    states = given[0] if given else None
    return states[:, -1] if isinstance(states, torch.Tensor) and states.dim() == 3 else None
