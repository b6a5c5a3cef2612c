"""One run from its prompts to its files: encode, plan batches, measure, save; resumed where it was interrupted.

Contract: how a batch is measured is known to `generation` and `scoring`, and how it is saved to
`store.run_folder`; this module only joins them.
"""

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nucleoscope.measure import batching, checking, cosine, encoding, generation, scoring, second_look, static
from nucleoscope.measure.model_facts import find_context_length, find_embedding_matrix, find_end_tokens
from nucleoscope.measure.variants import create_variants, find_layout
from nucleoscope.quantities import list_recorded
from nucleoscope.settings import Settings
from nucleoscope.wording import count


def complete_run(
    folder: Any,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    texts: list[str] | None = None,
    progress: bool = True,
    **settings: Any,
) -> None:
    """Measures what is missing in a `store.run_folder.RunFolder` that is open in a ``with`` block, and finishes it.

    With ``texts``, one for each prompt, they are measured; else the model generates. ``settings`` are those
    of `generation.measure` or `scoring.measure`. An interrupted run resumes with the same batches, the one in
    progress after the last step that was saved; with another batch_size, the remaining prompts are planned anew.
    """
    if folder.finished:  # another process finished it while this one waited
        return
    chosen = Settings(**settings).check()
    mode, data = (generation, (prompts,)) if texts is None else (scoring, (prompts, texts))
    inputs = mode.encode(tokenizer, *data, **encoding.list_options(chosen, find_context_length(model)))
    variants = create_variants(model, inputs.ids, chosen.variants)
    kept = second_look.keep_states(model, inputs, chosen)
    if discarded := folder.discard_batches([quantity.plural for quantity in list_recorded()], find_layout(variants)):
        batches = "batch" if discarded == 1 else "batches"
        print(f"discarded {discarded} {batches} with different quantities, to be measured again")
    unmeasured = batching.list_unmeasured(folder, len(prompts))
    batches = folder.load_plan(chosen.batch_size)
    if batches is None:
        batches = mode.plan_batches(model, inputs, chosen, unmeasured)
        folder.save_plan(chosen.batch_size, batches)
    todo = batching.resume_plan(batches, unmeasured)
    if begun := _describe_begun(folder, len(prompts) - len(unmeasured), len(prompts), todo):
        print(begun)
    # What is drawn of a batch is saved every few seconds. A batch of texts is read in about that time: "auto" puts
    # 1,024 tokens into one on a CPU. It takes longer only if the user asks for larger ones, or for a model that
    # must read a text anew for each of its tokens.
    keeping = {"folder": folder} if texts is None else {}
    options = {"inputs": inputs, "batches": todo, "progress": progress} | keeping | settings
    for batch in mode.measure(model, tokenizer, *data, measured_variants=variants, kept=kept, **options):
        if kept is not None:
            folder.save_states(batch.indices, kept.take())
        given = (batch.indices, batch.records, batch.seconds, batch.continued, batch.path)
        folder.save_batch(*given, batch.variants, find_layout(variants))
    done = folder.list_batches()
    info = {"mode": "generate" if texts is None else "score"}
    info |= {"chat_template": bool(getattr(tokenizer, "chat_template", None))}
    info |= batching.collect_run_info(model, inputs, done, chosen.batch_size)
    info |= {"end_tokens": sorted(find_end_tokens(model, tokenizer))}
    if texts is None:
        info |= {"decoding": checking.find_way(model, chosen.skip_check)}
        paths = {batch.get("path") or static.DYNAMIC for batch in done}
        info |= {"decoding_path": ", ".join(sorted(paths))}  # several if a capture failed in the middle
        info |= {"shared_prefix_tokens": len(checking.choose_prefix(model, inputs.ids, chosen.skip_check))}
    else:
        info |= {"texts_truncated": len(inputs.texts_truncated)}
        info |= {"reading": ", ".join(sorted({batch.get("path") or "" for batch in done} - {""}))}
    if variants is not None:
        info |= {"variants": variants.describe("prompts" if texts is None else "prompts and texts")}
    # Its files are written by `finish`: until then a killed process leaves nothing of it, and it is repeated.
    spaces = () if variants is None else variants.spaces
    looked, said = second_look.look(model, tokenizer, inputs, folder, chosen, spaces)
    directions = cosine.find_directions(find_embedding_matrix(model))
    folder.finish(len(prompts), info | said, tokenizer, directions, looked)


def _describe_begun(folder: Any, measured: int, n_prompts: int, todo: list[list[int]]) -> str:
    """What an interrupted process has left of a run, in a line to print; "" if that is nothing."""
    parts = folder.load_parts(todo[0]) if todo else []
    if not (measured or parts):
        return ""
    batch = f"the batch in progress ({count(len(todo[0]), 'prompt')})" if parts else ""
    steps = f", and {batch} has reached step {parts[-1]['end']:,}" if parts else ""
    verb = "is" if 1 in (measured, n_prompts) else "are"
    return f"resuming: {measured:,} of {count(n_prompts, 'prompt')} {verb} finished{steps}"
